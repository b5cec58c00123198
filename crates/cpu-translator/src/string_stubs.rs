//! REP STOS and REP MOVS upwards through 64-bit addresses, as translated code jumps to them:
//! page after page with the host's own instruction. Between pages the registers are as the
//! interrupted instruction leaves them. What is not plain, and pages that the tables do not
//! know, leave with all registers and flags as they are; the sites are noted already.
//!
//! R10: where the block goes on.

use crate::layout::*;
use std::arch::global_asm;

/// REP STOS of 1 << `size` bytes.
pub fn store(size: usize) -> u64 {
    let stubs: [unsafe extern "C" fn(); 4] =
        [ryokan_translator_stos1, ryokan_translator_stos2, ryokan_translator_stos4, ryokan_translator_stos8];
    stubs[size] as *const () as u64
}

/// REP MOVS of 1 << `size` bytes.
pub fn copy(size: usize) -> u64 {
    let stubs: [unsafe extern "C" fn(); 4] =
        [ryokan_translator_movs1, ryokan_translator_movs2, ryokan_translator_movs4, ryokan_translator_movs8];
    stubs[size] as *const () as u64
}

unsafe extern "C" {
    fn ryokan_translator_stos1();
    fn ryokan_translator_stos2();
    fn ryokan_translator_stos4();
    fn ryokan_translator_stos8();
    fn ryokan_translator_movs1();
    fn ryokan_translator_movs2();
    fn ryokan_translator_movs4();
    fn ryokan_translator_movs8();
}

/// Elements that are moved without a look at what is pending.
const MANY: i32 = 0x8000;

/// The parts that all have in common: the way in, and the ways out.
macro_rules! string {
    ($name:literal, $shift:literal, $($body:literal),+ $(,)?) => {
        global_asm!(
            ".p2align 6",
            concat!(".globl ryokan_translator_", $name),
            concat!("ryokan_translator_", $name, ":"),
            "mov gs:[{next}], r10",
            "mov gs:[{rax_saved}], rax",
            "lahf",
            "seto al",
            "mov gs:[{spare}], rax",
            "test dword ptr gs:[{system}], 0x400",
            "jnz 8f",
            "cmp rcx, {many}",
            "ja 8f",
            "2:",
            "test rcx, rcx",
            "jz 9f",
            // R10: elements in this round.
            "mov eax, edi",
            "and eax, 0xfff",
            "mov r10d, 0x1000",
            "sub r10d, eax",
            "shr r10d, {shift}",
            "jz 8f",
            "cmp r10, rcx",
            "cmova r10, rcx",
            $($body,)+
            "jmp 2b",
            "9:",
            "mov eax, gs:[{spare}]",
            "add al, 0x7f",
            "sahf",
            "mov rax, gs:[{rax_saved}]",
            "jmp qword ptr gs:[{next}]",
            // The page of R11 is not known.
            "7:",
            "mov eax, gs:[{spare}]",
            "add al, 0x7f",
            "sahf",
            "mov rax, gs:[{rax_saved}]",
            "mov r10, r11",
            "jmp qword ptr gs:[{miss}]",
            "8:",
            "mov eax, gs:[{spare}]",
            "add al, 0x7f",
            "sahf",
            "mov rax, gs:[{rax_saved}]",
            "jmp qword ptr gs:[{slow}]",
            "6:",
            "mov eax, gs:[{other_site}]",
            "mov gs:[{site}], eax",
            "mov r11, rdi",
            "jmp 7b",
            "5:",
            "mov r11, rsi",
            "jmp 7b",
            shift = const $shift,
            next = const STRING_NEXT,
            rax_saved = const RAX_SAVED,
            spare = const SPARE,
            system = const SYSTEM,
            site = const SITE,
            other_site = const OTHER_SITE,
            many = const MANY,
            left = const STRING_LEFT,
            from = const STRING_FROM,
            read = const READ_TABLE,
            write = const WRITE_TABLE,
            miss = const EXITS + 8 * reason::MISS as i32,
            slow = const EXITS + 8 * reason::SLOW as i32,
        );
    };
}

macro_rules! stos {
    ($name:literal, $shift:literal, $instruction:literal) => {
        string!(
            $name,
            $shift,
            "/* {read} {from} */",
            "mov r11, rdi",
            "shl r11, 16",
            "mov rax, r11",
            "sar rax, 16",
            "cmp rax, rdi",
            "jne 8f",
            "shr r11, 28",
            "not r11",
            "mov r11, gs:[r11*8 + {write}]",
            "test r11b, 1",
            "jz 6f",
            "sub rcx, r10",
            "mov gs:[{left}], rcx",
            "mov rcx, r10",
            "mov rax, gs:[{rax_saved}]",
            "lea rdi, [rdi + r11 - 1]",
            $instruction,
            "sub rdi, r11",
            "inc rdi",
            "mov rcx, gs:[{left}]",
        );
    };
}

macro_rules! movs {
    ($name:literal, $shift:literal, $instruction:literal) => {
        string!(
            $name,
            $shift,
            "mov eax, esi",
            "and eax, 0xfff",
            "neg eax",
            "add eax, 0x1000",
            "shr eax, {shift}",
            "jz 8f",
            "cmp r10, rax",
            "cmova r10, rax",
            "mov r11, rsi",
            "shl r11, 16",
            "mov rax, r11",
            "sar rax, 16",
            "cmp rax, rsi",
            "jne 8f",
            "shr r11, 28",
            "mov r11, gs:[r11*8 + {read}]",
            "test r11b, 1",
            "jz 5f",
            "mov gs:[{from}], r11",
            "mov r11, rdi",
            "shl r11, 16",
            "mov rax, r11",
            "sar rax, 16",
            "cmp rax, rdi",
            "jne 8f",
            "shr r11, 28",
            "not r11",
            "mov r11, gs:[r11*8 + {write}]",
            "test r11b, 1",
            "jz 6f",
            "sub rcx, r10",
            "mov gs:[{left}], rcx",
            "mov rcx, r10",
            "mov r10, gs:[{from}]",
            "lea rdi, [rdi + r11 - 1]",
            "lea rsi, [rsi + r10 - 1]",
            $instruction,
            "sub rdi, r11",
            "inc rdi",
            "sub rsi, r10",
            "inc rsi",
            "mov rcx, gs:[{left}]",
        );
    };
}

stos!("stos1", 0, "rep stosb");
stos!("stos2", 1, "rep stosw");
stos!("stos4", 2, "rep stosd");
stos!("stos8", 3, "rep stosq");
movs!("movs1", 0, "rep movsb");
movs!("movs2", 1, "rep movsw");
movs!("movs4", 2, "rep movsd");
movs!("movs8", 3, "rep movsq");
