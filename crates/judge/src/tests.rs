use crate::case::{Case, Outcome, layout};
use crate::{Family, Generator, Native};

fn native() -> Native {
    Native::new(&[0x11; layout::DATA_SIZE as usize], &[0x22; layout::PAGE as usize]).unwrap()
}

fn one(native: &mut Native, case: &Case) -> Box<Outcome> {
    let mut outcome = Outcome::empty();
    native.run(std::slice::from_ref(case), |_, o| *outcome = *o).unwrap();
    outcome
}

fn case(code: &[u8]) -> Case {
    let mut case = Case::default();
    case.set_code(code);
    case
}

#[test]
fn the_child_reports_registers_and_memory() {
    let mut native = native();
    let mut c = case(&[0x48, 0x01, 0xd8, 0x88, 0x07]); // add rax, rbx; mov [rdi], al
    c.registers.gpr[0] = 0x7fff_ffff_ffff_ffff;
    c.registers.gpr[3] = 2;
    c.registers.gpr[7] = layout::DATA + 5;
    c.registers.gpr[4] = 0x1234;
    c.registers.zmm[7][..4].copy_from_slice(&[1, 2, 3, 4]);
    let o = one(&mut native, &c);
    assert_eq!((o.vector, o.registers.rip), (3, layout::CODE + 6));
    assert_eq!(o.registers.gpr[0], 0x8000_0000_0000_0001);
    assert_eq!(o.registers.gpr[4], 0x1234);
    assert_eq!(o.registers.rflags & 0x8d5, 0x890);
    assert_eq!(o.registers.zmm[7][..4], [1, 2, 3, 4]);
    assert_eq!(o.memory[4..7], [0x11, 1, 0x11]);
}

#[test]
fn faults_are_told_apart() {
    let mut native = native();
    let o = one(&mut native, &case(&[0xf7, 0xf1])); // div ecx by zero
    assert_eq!((o.vector, o.registers.rip), (0, layout::CODE));
    let o = one(&mut native, &case(&[0x0f, 0x0b])); // ud2
    assert_eq!(o.vector, 6);
    let mut c = case(&[0x89, 0x07]); // mov [rdi], eax
    c.registers.gpr[7] = layout::READ_ONLY + 8;
    let o = one(&mut native, &c);
    assert_eq!((o.vector, o.error_code, o.address), (14, 7, layout::READ_ONLY + 8));
    c.registers.gpr[7] = layout::DATA_END;
    let o = one(&mut native, &c);
    assert_eq!((o.vector, o.error_code, o.address), (14, 6, layout::DATA_END));
    c.registers.gpr[7] = 0x8000_0000_0000;
    assert_eq!(one(&mut native, &c).vector, 13);
    assert_eq!(one(&mut native, &case(&[0xf4])).vector, 13); // hlt
    let mut c = case(&[0x0f, 0x5e, 0xc1]); // divps xmm0, xmm1: 0 / 0 unmasked
    c.registers.mxcsr = 0;
    assert_eq!(one(&mut native, &c).vector, 19);
}

#[test]
fn a_case_that_takes_the_child_down_is_reported_and_others_go_on() {
    let mut native = native();
    // getpid is not allowed.
    let cases = [case(&[0x90]), case(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05]), case(&[0x90])];
    let mut vectors = Vec::new();
    native.run(&cases, |_, o| vectors.push(o.vector)).unwrap();
    assert_eq!(vectors, [3, 255, 3]);
}

#[test]
fn generators_reach_every_family_and_repeat_themselves() {
    for family in Family::ALL {
        if family == Family::Evex && !cpu_host::has_avx512() {
            continue;
        }
        let mut generator = Generator::new(1, &[family]);
        assert!(generator.encodings() > 4, "{family:?}");
        let mut again = Generator::new(1, &[family]);
        for i in 0..50 {
            assert_eq!(generator.single(i).code(), again.single(i).code());
        }
    }
    assert!(Generator::new(1, &Family::ALL).encodings() > 1500);
}

#[test]
#[ignore = "prints the rate of the silicon alone"]
fn rate() {
    let mut native = native();
    let mut generator = Generator::new(3, &Family::ALL);
    let start = std::time::Instant::now();
    let cases: Vec<Case> =
        (0..100_000).map(|i| if i % 4 == 0 { generator.snippet(12) } else { generator.single(i) }).collect();
    println!("generated in {:?}, {} encodings", start.elapsed(), generator.encodings());
    let start = std::time::Instant::now();
    let mut vectors = std::collections::BTreeMap::new();
    native.run(&cases, |_, o| *vectors.entry(o.vector).or_insert(0) += 1).unwrap();
    println!("ran in {:?}: {vectors:?}", start.elapsed());
}
