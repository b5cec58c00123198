use super::*;
use std::io::Write;

/// A multiboot kernel: 32-bit code that counts, writes to the serial port and powers off, after
/// `rounds` rounds with a timer that interrupts them is not needed: the time-stamp counter and the
/// PIT's counter are read and stored.
fn kernel(rounds: u32) -> tempfile::NamedTempFile {
    let (load, header) = (0x10_0000u32, 32u32);
    let mut image: Vec<u8> = Vec::new();
    // Header with addresses (multiboot specification 0.6.96, 3.1).
    let (magic, flags) = (0x1bad_b002u32, 0x1_0000u32);
    for word in [magic, flags, 0u32.wrapping_sub(magic.wrapping_add(flags)), load, load, 0, 0, load + header]
    {
        image.extend(word.to_le_bytes());
    }
    // mov ecx,rounds; mov edi,200000h
    image.push(0xb9);
    image.extend(rounds.to_le_bytes());
    image.extend([0xbf, 0, 0, 0x20, 0]);
    let top = image.len();
    // rdtsc; xor ebx,eax; in al,40h; add ebx,eax; rol ebx,5; mov [edi],ebx; add edi,4; and edi,2fffffh
    image.extend([0x0f, 0x31, 0x31, 0xc3, 0xe4, 0x40, 0x01, 0xc3, 0xc1, 0xc3, 5, 0x89, 0x1f, 0x83, 0xc7, 4]);
    image.extend([0x81, 0xe7, 0xff, 0xff, 0x2f, 0]);
    // mov dx,3f8h; mov al,bl; and al,3fh; add al,20h; out dx,al; dec ecx; jnz top
    image.extend([0x66, 0xba, 0xf8, 3, 0x88, 0xd8, 0x24, 0x3f, 0x04, 0x20, 0xee, 0x49]);
    let back = top as i32 - (image.len() as i32 + 6);
    image.extend([0x0f, 0x85]);
    image.extend(back.to_le_bytes());
    // hlt with interrupts off
    image.extend([0xfa, 0xf4]);
    let end = load + image.len() as u32;
    image[20..24].copy_from_slice(&end.to_le_bytes());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&image).unwrap();
    file
}

fn setup(kernel: &tempfile::NamedTempFile) -> Setup {
    let kernel = kernel.path().display().to_string();
    let arguments = ["-m", "16", "-kernel", &kernel].map(String::from).to_vec();
    Setup { arguments, pace: 3, longest: 500, seed: 1 }
}

#[test]
fn two_interpreters_agree_to_the_end() {
    let kernel = kernel(20_000);
    let (progress, outcome) =
        run(&setup(&kernel), ["interpreter", "interpreter"], 10_000_000, |_| {}).unwrap();
    assert!(matches!(outcome, Outcome::Ended(Ended::Halted)), "{outcome:?}");
    assert!(progress.instructions > 300_000, "{progress:?}");
    assert_eq!(progress.console.len(), 20_000);
}

#[test]
fn a_difference_is_found_and_narrowed_down() {
    let kernel = kernel(20_000);
    let setup = setup(&kernel);
    let found = differing(&setup).unwrap();
    assert!(found.text.contains("gpr[3]"), "{}", found.text);
}

/// Compares two machines of which one has a bit of memory turned over on the way.
fn differing(setup: &Setup) -> Result<Divergence> {
    let (mut a, mut b) = (Twin::new(setup, "interpreter")?, Twin::new(setup, "interpreter")?);
    let (x, y) = (a.round(10)?, b.round(10)?);
    assert_eq!(first_difference(&x, &y), None);
    // The immediate of `rol ebx,5`.
    let code = b.code(0x10_0000, 256).unwrap();
    let at = code.windows(3).position(|bytes| bytes == [0xc1, 0xc3, 5]).unwrap() as u64;
    b.ram()?.write(0x10_0000 + at + 2, &[6]);
    b.ram()?.note_write(0x10_0000 + at + 2, 1);
    assert_eq!(memory_difference(a.ram()?, b.ram()?), Some(0x10_0000 + at + 2));
    let (x, y) = (a.round(10)?, b.round(10)?);
    let index = first_difference(&x, &y).expect("the states differ");
    Ok(report::windows(&a, &b, &x, &y, index, 10))
}
