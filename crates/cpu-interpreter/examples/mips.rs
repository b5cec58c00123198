//! Guest instructions per second over a few kernels: `cargo run --release -p cpu-interpreter
//! --example mips`.

use cpu::cpuid::CpuidTable;
use cpu::{Exit, Vcpu};
use cpu_interpreter::testing::{Stepper, identity_tables, long_mode_state};
use iced_x86::code_asm::*;
use memory::{AddressSpace, RamBlock, SpaceKind};
use std::sync::Arc;

const CODE: u64 = 0x10000;
const DATA: u64 = 0x100000;

type Kernel = fn(&mut CodeAssembler) -> Result<(), IcedError>;

fn alu(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rcx, 20_000_000u64)?;
    a.set_label(&mut top)?;
    a.add(rax, rcx)?;
    a.xor(rdx, rax)?;
    a.shl(rdx, 3)?;
    a.lea(rsi, rax + rdx * 4 + 17)?;
    a.sub(rbx, rsi)?;
    a.dec(rcx)?;
    a.jnz(top)
}

fn crc_table(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rcx, 15_000_000u64)?;
    a.mov(rsi, DATA)?;
    a.set_label(&mut top)?;
    a.movzx(edx, al)?;
    a.shr(eax, 8)?;
    a.xor(eax, dword_ptr(rsi + rdx * 4))?;
    a.add(eax, ecx)?;
    a.sub(ecx, 1)?;
    a.jne(top)
}

fn copy_words(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut outer, mut top) = (a.create_label(), a.create_label());
    a.mov(rbx, 400u64)?;
    a.set_label(&mut outer)?;
    a.mov(rsi, DATA)?;
    a.mov(rdi, DATA + 0x200000)?;
    a.mov(rcx, 40_000u64)?;
    a.set_label(&mut top)?;
    a.mov(rax, qword_ptr(rsi))?;
    a.mov(qword_ptr(rdi), rax)?;
    a.add(rsi, 8)?;
    a.add(rdi, 8)?;
    a.sub(rcx, 1)?;
    a.jne(top)?;
    a.sub(rbx, 1)?;
    a.jne(outer)
}

fn fib(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut f, mut base, mut end) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(edi, 31)?;
    a.call(f)?;
    a.jmp(end)?;
    a.set_label(&mut f)?;
    a.cmp(edi, 2)?;
    a.jl(base)?;
    a.push(rbx)?;
    a.mov(ebx, edi)?;
    a.lea(edi, rbx - 1)?;
    a.call(f)?;
    a.push(rax)?;
    a.lea(edi, rbx - 2)?;
    a.call(f)?;
    a.pop(rcx)?;
    a.add(eax, ecx)?;
    a.pop(rbx)?;
    a.ret()?;
    a.set_label(&mut base)?;
    a.mov(eax, edi)?;
    a.ret()?;
    a.set_label(&mut end)?;
    a.nop()
}

fn sort(a: &mut CodeAssembler) -> Result<(), IcedError> {
    // insertion sort of 6,000 pseudo-random words
    let (mut fill, mut outer, mut inner, mut place) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.mov(rsi, DATA)?;
    a.xor(ecx, ecx)?;
    a.mov(eax, 12345)?;
    a.set_label(&mut fill)?;
    a.imul_3(eax, eax, 1_103_515_245)?;
    a.add(eax, 12345)?;
    a.mov(edx, eax)?;
    a.shr(edx, 3)?;
    a.mov(dword_ptr(rsi + rcx * 4), edx)?;
    a.inc(ecx)?;
    a.cmp(ecx, 6000)?;
    a.jb(fill)?;
    a.mov(ecx, 1)?;
    a.set_label(&mut outer)?;
    a.mov(eax, dword_ptr(rsi + rcx * 4))?;
    a.mov(edx, ecx)?;
    a.set_label(&mut inner)?;
    a.mov(ebx, dword_ptr(rsi + rdx * 4 - 4))?;
    a.cmp(ebx, eax)?;
    a.jbe(place)?;
    a.mov(dword_ptr(rsi + rdx * 4), ebx)?;
    a.sub(edx, 1)?;
    a.jne(inner)?;
    a.set_label(&mut place)?;
    a.mov(dword_ptr(rsi + rdx * 4), eax)?;
    a.inc(ecx)?;
    a.cmp(ecx, 6000)?;
    a.jb(outer)
}

fn chase(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut fill, mut top) = (a.create_label(), a.create_label());
    a.mov(rsi, DATA)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut fill)?;
    a.lea(rax, rcx + 7 * 8)?;
    a.and(eax, 0x7ff8)?;
    a.add(rax, rsi)?;
    a.mov(qword_ptr(rsi + rcx), rax)?;
    a.add(ecx, 8)?;
    a.cmp(ecx, 0x8000)?;
    a.jb(fill)?;
    a.mov(rcx, 20_000_000u64)?;
    a.mov(rax, rsi)?;
    a.set_label(&mut top)?;
    a.mov(rax, qword_ptr(rax))?;
    a.dec(rcx)?;
    a.jne(top)
}

fn sse(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rcx, 3_000_000u64)?;
    a.mov(rsi, DATA)?;
    a.set_label(&mut top)?;
    a.movsd_2(xmm0, qword_ptr(rsi))?;
    a.mulsd(xmm0, xmm1)?;
    a.addsd(xmm2, xmm0)?;
    a.movsd_2(qword_ptr(rsi + 8), xmm2)?;
    a.dec(rcx)?;
    a.jne(top)
}

/// CPU time of this thread: the host may be busy with other work.
fn cpu_seconds() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let kernels: [(&str, Kernel); 7] = [
        ("alu", alu),
        ("crc table", crc_table),
        ("copy words", copy_words),
        ("fib", fib),
        ("insertion sort", sort),
        ("pointer chase", chase),
        ("sse double", sse),
    ];
    let (mut product, mut count) = (1.0, 0);
    for (name, kernel) in kernels {
        let mut assembler = CodeAssembler::new(64)?;
        kernel(&mut assembler)?;
        assembler.hlt()?;
        let code = assembler.assemble(CODE)?;
        let memory = AddressSpace::new(SpaceKind::Memory);
        let ram = RamBlock::new("bench", 16 << 20)?;
        memory.edit(|edit| edit.ram(ram, 0));
        identity_tables(&memory);
        memory.write(CODE, &code);
        let state = long_mode_state(CODE, 0x80000, 0);
        let mut stepper = Stepper::new(memory, Arc::new(CpuidTable::default()), &state)?;
        let start = cpu_seconds();
        let exit = stepper.vcpu().run();
        assert_eq!(exit, Exit::Halted, "{name} stops at its HLT");
        let seconds = cpu_seconds() - start;
        let mips = stepper.vcpu().retired().unwrap_or(0) as f64 / seconds / 1e6;
        println!("{name:16} {mips:8.0} MIPS  {seconds:.3} s");
        if name != "sse double" {
            product *= mips;
            count += 1;
        }
    }
    println!("{:16} {:8.0} MIPS", "integer geomean", f64::powf(product, 1.0 / f64::from(count)));
    Ok(())
}
