use crate::{Class, Operand, Plan, SimdContext, SimdFault, Thunks};
use iced_x86::{Decoder, DecoderOptions, Instruction};

struct Bench {
    thunks: Thunks,
    context: SimdContext,
    gpr: [u64; 16],
    rflags: u64,
    mem: Operand,
}

fn decode(bytes: &[u8]) -> Instruction {
    let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    assert_eq!(instruction.len(), bytes.len());
    instruction
}

impl Bench {
    fn new() -> Self {
        Bench {
            thunks: Thunks::new().unwrap(),
            context: SimdContext::default(),
            gpr: [0; 16],
            rflags: 2,
            mem: Operand::default(),
        }
    }
    fn plan(&self, bytes: &[u8]) -> Plan {
        self.thunks.plan(&decode(bytes)).expect("a plan")
    }
    fn run(&mut self, bytes: &[u8]) -> Result<bool, SimdFault> {
        self.plan(bytes).run(&mut self.context, &mut self.gpr, &mut self.rflags, &mut self.mem)
    }
    fn f64s(&self, register: usize) -> [f64; 2] {
        [f64::from_bits(self.context.zmm[register][0]), f64::from_bits(self.context.zmm[register][1])]
    }
}

#[test]
fn sse_arithmetic_keeps_the_upper_half() {
    let mut b = Bench::new();
    b.context.zmm[9][..4].copy_from_slice(&[1.5f64.to_bits(), 2.0f64.to_bits(), 7, 8]);
    b.context.zmm[12][..4].copy_from_slice(&[0.25f64.to_bits(), 3.0f64.to_bits(), 9, 9]);
    assert_eq!(b.run(&[0x66, 0x45, 0x0f, 0x58, 0xcc]), Ok(true)); // addpd xmm9, xmm12
    assert_eq!(b.f64s(9), [1.75, 5.0]);
    assert_eq!(b.context.ymm(9)[2..], [7, 8]);
    assert_eq!(b.context.ymm(12), [0.25f64.to_bits(), 3.0f64.to_bits(), 9, 9]);
    assert_eq!(b.context.mxcsr(), 0x1f80);
}

#[test]
fn vex_zeroes_the_upper_half() {
    if !std::is_x86_feature_detected!("avx") {
        return;
    }
    let mut b = Bench::new();
    b.context.zmm = [[5; 8]; 32];
    b.run(&[0xc5, 0xf1, 0xfe, 0xc2]).unwrap(); // vpaddd xmm0, xmm1, xmm2
    assert_eq!(b.context.zmm[0], [10, 10, 0, 0, 0, 0, 0, 0]);
    b.run(&[0xc5, 0xf8, 0x77]).unwrap(); // vzeroupper
    assert!(b.context.zmm[..16].iter().all(|r| r[2..] == [0; 6]));
    assert_eq!(b.context.zmm[16], [5; 8]);
    assert_eq!(b.plan(&[0xc5, 0xf8, 0x77]).class, Class::Avx);
}

#[test]
fn memory_operands_say_what_they_need() {
    let b = Bench::new();
    let movaps = b.plan(&[0x0f, 0x28, 0x04, 0x24]).memory.unwrap(); // movaps xmm0, [rsp]
    assert!(movaps.read && !movaps.write && movaps.align == 16 && movaps.size == 16);
    let movups = b.plan(&[0x0f, 0x11, 0x04, 0x24]).memory.unwrap(); // movups [rsp], xmm0
    assert!(!movups.read && movups.write && movups.align == 1);
    let fstp = b.plan(&[0xdb, 0x3c, 0x24]).memory.unwrap(); // fstp tbyte [rsp]
    assert!(fstp.write && fstp.size == 10);
    assert!(b.thunks.plan(&decode(&[0x0f, 0xae, 0x14, 0x24])).is_none(), "ldmxcsr is the interpreter's");
    assert!(b.thunks.plan(&decode(&[0x01, 0xc0])).is_none());
}

#[test]
fn general_registers_and_flags() {
    let mut b = Bench::new();
    b.gpr[13] = 42;
    b.run(&[0xf2, 0x49, 0x0f, 0x2a, 0xc5]).unwrap(); // cvtsi2sd xmm0, r13
    assert_eq!(b.f64s(0)[0], 42.0);
    b.run(&[0xf2, 0x0f, 0x2d, 0xd8]).unwrap(); // cvtsd2si ebx, xmm0
    assert_eq!(b.gpr[3], 42);
    b.rflags = 0x8d5 | 0x202;
    b.run(&[0x66, 0x0f, 0x2e, 0xc1]).unwrap(); // ucomisd xmm0, xmm1
    assert_eq!(b.rflags, 0x202);
    b.gpr[0] = 16;
    b.gpr[2] = 16;
    b.gpr[1] = u64::MAX;
    b.context.zmm[3][..4].copy_from_slice(&[0x4141_4141_4141_4141, 0x4141_4142_4141_4141, 0, 0]);
    b.context.zmm[4][..4].copy_from_slice(&[0x42, 0, 0, 0]);
    b.gpr[0] = 1;
    b.run(&[0x66, 0x0f, 0x3a, 0x61, 0xe3, 0]).unwrap(); // pcmpestri xmm4, xmm3, 0
    assert_eq!(b.gpr[1], 12);
}

#[test]
fn simd_exceptions() {
    let mut b = Bench::new();
    b.context.zmm[0][0] = 1.0f64.to_bits();
    b.run(&[0xf2, 0x0f, 0x5e, 0xc1]).unwrap(); // divsd xmm0, xmm1
    assert_eq!(b.f64s(0)[0], f64::INFINITY);
    assert_eq!(b.context.mxcsr(), 0x1f84);
    b.context.zmm[0][0] = 1.0f64.to_bits();
    b.context.set_mxcsr(0x1d80);
    assert_eq!(b.run(&[0xf2, 0x0f, 0x5e, 0xc1]), Err(SimdFault::Xm));
    assert_eq!(b.f64s(0)[0], 1.0);
    assert_eq!(b.context.mxcsr(), 0x1d84);
    b.context.set_mxcsr(0x7f80); // round to zero
    b.context.zmm[1][0] = 3.0f64.to_bits();
    b.run(&[0xf2, 0x0f, 0x5e, 0xc1]).unwrap();
    assert_eq!(b.f64s(0)[0].to_bits(), 0x3fd5_5555_5555_5555);
    assert_eq!(std::hint::black_box(2.0f64) / std::hint::black_box(3.0), 0.6666666666666666);
}

#[test]
fn x87_lives_in_the_host_and_comes_back() {
    let mut b = Bench::new();
    b.run(&[0xd9, 0xe8]).unwrap(); // fld1
    b.run(&[0xd9, 0xeb]).unwrap(); // fldpi
    b.run(&[0xd8, 0xc1]).unwrap(); // fadd st, st1
    assert!(b.context.is_live());
    b.context.sync();
    let state = b.context.state();
    assert_eq!(state.ftw, 0xc0);
    assert_eq!(state.fsw >> 11 & 7, 6);
    assert_eq!(state.st[1][..10], [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
    b.run(&[0xdd, 0x5c, 0x24, 0x08]).unwrap(); // fstp qword [rsp+8]
    assert_eq!(f64::from_le_bytes(b.mem.0[..8].try_into().unwrap()), 1.0 + std::f64::consts::PI);
    b.context.sync();
    assert_eq!(b.context.state().ftw, 0x80);
}

#[test]
fn unmasked_x87_exceptions_wait() {
    let mut b = Bench::new();
    b.mem.0[..2].copy_from_slice(&0x37bu16.to_le_bytes());
    b.run(&[0xd9, 0x2c, 0x24]).unwrap(); // fldcw [rsp]: zero divide unmasked
    assert_eq!(b.context.fcw(), 0x37b);
    b.run(&[0xd9, 0xe8]).unwrap(); // fld1
    b.run(&[0xd9, 0xee]).unwrap(); // fldz
    b.run(&[0xde, 0xf9]).unwrap(); // fdivp
    assert!(b.context.x87_pending());
    b.context.sync();
    assert_eq!(b.run(&[0xd9, 0xe8]), Err(SimdFault::Mf));
    assert_eq!(b.run(&[0x9b]), Err(SimdFault::Mf)); // fwait
    b.run(&[0xdf, 0xe0]).unwrap(); // fnstsw ax
    assert_eq!(b.gpr[0] & 0x84, 0x84);
    b.run(&[0xdb, 0xe2]).unwrap(); // fnclex
    b.run(&[0xd9, 0xe8]).unwrap();
    b.context.sync();
}

#[test]
fn unmasked_invalid_suppresses_an_x87_store() {
    let mut b = Bench::new();
    b.mem.0[..2].copy_from_slice(&0x37eu16.to_le_bytes());
    b.run(&[0xd9, 0x2c, 0x24]).unwrap(); // fldcw: invalid unmasked
    assert_eq!(b.run(&[0xdb, 0x1c, 0x24]), Ok(false)); // fistp dword [rsp] of an empty register
    b.run(&[0xdb, 0xe3]).unwrap(); // fninit
    assert_eq!(b.context.fcw(), 0x37f);
    assert_eq!(b.run(&[0xdb, 0x1c, 0x24]), Ok(true));
    assert_eq!(b.mem.0[..4], [0, 0, 0, 0x80]);
    b.context.sync();
}

#[test]
fn masked_moves_and_mmx() {
    let mut b = Bench::new();
    b.context.zmm[1][..4].copy_from_slice(&[0x8000_0000_0000_0080, 0x80, 0, 0]);
    b.context.zmm[0][..4].copy_from_slice(&[11, 12, 0, 0]);
    let plan = b.plan(&[0x66, 0x0f, 0xf7, 0xc1]); // maskmovdqu xmm0, xmm1
    assert!(plan.memory.unwrap().masked && plan.memory.unwrap().size == 16);
    assert_eq!(plan.byte_mask(&mut b.context), Ok(0x181));
    b.run(&[0x66, 0x0f, 0xf7, 0xc1]).unwrap();
    assert_eq!(b.mem.0[8], 12);
    b.mem.0[..8].copy_from_slice(&[0x80, 0, 0xff, 0, 0, 0, 0, 1]);
    b.run(&[0x0f, 0x6f, 0x0c, 0x24]).unwrap(); // movq mm1, [rsp]
    let plan = b.plan(&[0x0f, 0xf7, 0xd1]); // maskmovq mm2, mm1
    assert_eq!(plan.byte_mask(&mut b.context), Ok(5));
    b.run(&[0x0f, 0x77]).unwrap(); // emms
    b.context.sync();
    assert_eq!(b.context.state().ftw, 0);
    if !std::is_x86_feature_detected!("avx2") {
        return;
    }
    b.context.zmm[1][..4].copy_from_slice(&[0x8000_0000, 0, 0x8000_0000_0000_0000, 0]);
    let plan = b.plan(&[0xc4, 0xe2, 0x75, 0x2c, 0x04, 0x24]); // vmaskmovps ymm0, ymm1, [rsp]
    assert_eq!(plan.byte_mask(&mut b.context), Ok(0xf0000f));
    b.mem.0 = [1; 64];
    b.run(&[0xc4, 0xe2, 0x75, 0x2c, 0x04, 0x24]).unwrap();
    assert_eq!(b.context.ymm(0), [0x0101_0101, 0, 0x0101_0101_0000_0000, 0]);
}

#[test]
fn gathers_are_described() {
    if !std::is_x86_feature_detected!("avx2") {
        return;
    }
    let mut b = Bench::new();
    let plan = b.plan(&[0xc4, 0xe2, 0x71, 0x90, 0x04, 0x90]); // vpgatherdd xmm0, [rax+xmm2*4], xmm1
    let gather = *plan.gather().unwrap();
    assert_eq!((gather.count, gather.element_size, gather.index_size), (4, 4, 4));
    b.context.zmm[1][..4].copy_from_slice(&[0x8000_0000_0000_0000, 0x8000_0000, 1, 1]);
    b.context.zmm[2][..4].copy_from_slice(&[0xffff_ffff_0000_0001, 5, 0, 0]);
    b.context.zmm[0] = [3; 8];
    assert_eq!(gather.index(&b.context, 0), None);
    assert_eq!(gather.index(&b.context, 1), Some(-1));
    gather.set(&mut b.context, 1, 0x77);
    assert_eq!(gather.index(&b.context, 1), None);
    assert_eq!(gather.index(&b.context, 2), Some(5));
    gather.finish(&mut b.context);
    assert_eq!(b.context.ymm(0), [0x77_0000_0003, 3, 0, 0]);
    assert_eq!(b.context.ymm(1), [0; 4]);
}

/// `cargo test -p cpu-host --release -- --ignored --nocapture`: nanoseconds per instruction.
#[test]
#[ignore = "prints timings"]
fn timings() {
    let mut b = Bench::new();
    b.run(&[0xd9, 0xe8]).unwrap();
    b.run(&[0xd9, 0xe8]).unwrap();
    let cases: [(&str, &[u8]); 9] = [
        ("paddd xmm9, xmm12", &[0x66, 0x45, 0x0f, 0xfe, 0xcc]),
        ("movaps xmm0, [m]", &[0x0f, 0x28, 0x04, 0x24]),
        ("mulsd xmm1, xmm0", &[0xf2, 0x0f, 0x59, 0xc8]),
        ("vpaddd ymm0, ymm1, ymm2", &[0xc5, 0xf5, 0xfe, 0xc2]),
        ("cvtsi2sd xmm0, r13", &[0xf2, 0x49, 0x0f, 0x2a, 0xc5]),
        ("ucomisd xmm0, xmm1", &[0x66, 0x0f, 0x2e, 0xc1]),
        ("fadd st, st1", &[0xd8, 0xc1]),
        ("fstp st1; fld", &[0xd9, 0xc9]),
        ("pxor mm0, mm1", &[0x0f, 0xef, 0xc1]),
    ];
    for (name, bytes) in cases {
        let plan = b.plan(bytes);
        let start = std::time::Instant::now();
        for _ in 0..4_000_000 {
            plan.run(&mut b.context, &mut b.gpr, &mut b.rflags, &mut b.mem).unwrap();
        }
        println!("{name}: {:.2} ns", start.elapsed().as_nanos() as f64 / 4e6);
    }
    b.context.sync();
}
