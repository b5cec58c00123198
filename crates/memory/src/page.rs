use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Integers that guest memory is accessed in (little endian).
pub trait Scalar: Copy + Send + Sync + 'static + private::Sealed {
    const SIZE: usize;
    fn to_u64(self) -> u64;
    fn from_u64(value: u64) -> Self;
}

mod private {
    pub trait Sealed {
        /// `lock cmpxchg` for any alignment.
        ///
        /// # Safety
        /// `at` points to memory of this size that is valid for reads and writes.
        unsafe fn lock_cmpxchg(at: *mut Self, old: Self, new: Self) -> (Self, bool)
        where
            Self: Sized;
    }
}

macro_rules! scalar {
    ($t:ty, $atomic:ty, $acc:tt, $class:ident $(, $modifier:literal)?) => {
        impl Scalar for $t {
            const SIZE: usize = size_of::<$t>();
            fn to_u64(self) -> u64 {
                self as u64
            }
            fn from_u64(value: u64) -> Self {
                value as $t
            }
        }
        impl private::Sealed for $t {
            unsafe fn lock_cmpxchg(at: *mut $t, old: $t, new: $t) -> ($t, bool) {
                if (at as usize).is_multiple_of(size_of::<$t>()) {
                    // SAFETY: aligned and valid by the caller's promise; guest RAM is only
                    // ever accessed by atomic or volatile operations.
                    let cell = unsafe { <$atomic>::from_ptr(at) };
                    return match cell.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                        Ok(seen) => (seen, true),
                        Err(seen) => (seen, false),
                    };
                }
                #[cfg(target_arch = "x86_64")]
                {
                    let seen: $t;
                    // SAFETY: `at` is valid for reads and writes of this size; a misaligned
                    // locked access is legal on x86 (split lock).
                    unsafe {
                        std::arch::asm!(
                            concat!("lock cmpxchg [{at}], {new", $($modifier,)? "}"),
                            at = in(reg) at, new = in($class) new,
                            inout($acc) old => seen, options(nostack)
                        );
                    }
                    (seen, seen == old)
                }
                #[cfg(not(target_arch = "x86_64"))]
                {
                    // SAFETY: valid for reads and writes; not atomic on such hosts.
                    unsafe {
                        let seen = at.read_unaligned();
                        if seen == old { at.write_unaligned(new); }
                        (seen, seen == old)
                    }
                }
            }
        }
    };
}

scalar!(u8, AtomicU8, "al", reg_byte);
scalar!(u16, AtomicU16, "ax", reg, ":x");
scalar!(u32, AtomicU32, "eax", reg, ":e");
scalar!(u64, AtomicU64, "rax", reg, ":r");

#[repr(C, packed)]
struct Packed<T>(T);

/// The host address of one 4 KiB page of guest RAM.
///
/// RAM blocks are never unmapped while the process lives (see [`crate::RamBlock`]), so a
/// `HostPage` is always valid; what it must not outlive is the *guest's* idea of the page,
/// which is the engine's business (flushing its TLB).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPage(NonNull<u8>);

// SAFETY: guest RAM is shared by design; all accesses are volatile or atomic.
unsafe impl Send for HostPage {}
// SAFETY: as above.
unsafe impl Sync for HostPage {}

impl HostPage {
    /// # Safety
    /// `at` is the page-aligned start of 4096 bytes which stay mapped readable and writable
    /// until the process ends.
    pub(crate) unsafe fn new(at: *mut u8) -> Self {
        // SAFETY: a mapped address is never null.
        HostPage(unsafe { NonNull::new_unchecked(at) })
    }

    /// The address, for engines that emit code or fill tables (dereferencing needs `unsafe`).
    #[inline(always)]
    pub fn as_ptr(self) -> *mut u8 {
        self.0.as_ptr()
    }

    #[inline(always)]
    fn at<T: Scalar>(self, offset: usize) -> *mut T {
        assert!(offset <= 4096 - T::SIZE);
        self.0.as_ptr().wrapping_add(offset).cast()
    }

    /// Loads from byte `offset`; the access must not cross the page end (panics otherwise).
    #[inline(always)]
    pub fn load<T: Scalar>(self, offset: usize) -> T {
        let at = self.at::<T>(offset).cast::<Packed<T>>();
        // SAFETY: in bounds by `at`, mapped for the life of the process.
        unsafe { at.read_volatile() }.0
    }

    /// Stores to byte `offset`; the access must not cross the page end (panics otherwise).
    #[inline(always)]
    pub fn store<T: Scalar>(self, offset: usize, value: T) {
        let at = self.at::<T>(offset).cast::<Packed<T>>();
        // SAFETY: in bounds by `at`, mapped for the life of the process.
        unsafe { at.write_volatile(Packed(value)) }
    }

    /// `lock cmpxchg` at any alignment within the page: the value seen and whether it matched.
    #[inline]
    pub fn compare_exchange<T: Scalar>(self, offset: usize, old: T, new: T) -> (T, bool) {
        // SAFETY: in bounds by `at`, mapped for the life of the process.
        unsafe { T::lock_cmpxchg(self.at::<T>(offset), old, new) }
    }

    /// `lock cmpxchg16b`; `offset` must be a multiple of 16 (panics otherwise). Pairs are (low, high).
    #[inline]
    pub fn compare_exchange_16(self, offset: usize, old: (u64, u64), new: (u64, u64)) -> ((u64, u64), bool) {
        assert!(offset <= 4096 - 16 && offset.is_multiple_of(16));
        let at = self.0.as_ptr().wrapping_add(offset);
        let (mut low, mut high) = old;
        // SAFETY: in bounds and aligned; rbx is saved because LLVM reserves it.
        unsafe {
            std::arch::asm!(
                "xchg rbx, {new_low}", "lock cmpxchg16b [{at}]", "mov rbx, {new_low}",
                at = in(reg) at, new_low = inout(reg) new.0 => _, in("rcx") new.1,
                inout("rax") low, inout("rdx") high, options(nostack)
            );
        }
        ((low, high), (low, high) == old)
    }

    /// Copies out `to.len()` bytes from `offset` (within the page).
    #[inline]
    pub fn read(self, offset: usize, to: &mut [u8]) {
        assert!(offset <= 4096 && to.len() <= 4096 - offset);
        // SAFETY: in bounds; a racing guest may tear the copy, which any value of u8 allows.
        unsafe { std::ptr::copy(self.0.as_ptr().add(offset), to.as_mut_ptr(), to.len()) }
    }

    /// Whether the bytes from `offset` (within the page) are these.
    #[inline]
    pub fn holds(self, offset: usize, bytes: &[u8]) -> bool {
        assert!(offset <= 4096 && bytes.len() <= 4096 - offset);
        let (words, rest) = bytes.as_chunks::<8>();
        let tail = offset + 8 * words.len();
        words
            .iter()
            .enumerate()
            .all(|(n, word)| self.load::<u64>(offset + 8 * n) == u64::from_le_bytes(*word))
            && rest.iter().enumerate().all(|(n, &byte)| self.load::<u8>(tail + n) == byte)
    }

    /// Copies `from` to `offset` (within the page).
    #[inline]
    pub fn write(self, offset: usize, from: &[u8]) {
        assert!(offset <= 4096 && from.len() <= 4096 - offset);
        // SAFETY: in bounds.
        unsafe { std::ptr::copy(from.as_ptr(), self.0.as_ptr().add(offset), from.len()) }
    }

    /// Copies within guest memory, as `memmove`.
    #[inline]
    pub fn copy_from(self, offset: usize, from: HostPage, from_offset: usize, len: usize) {
        assert!(offset <= 4096 && len <= 4096 - offset && from_offset <= 4096 && len <= 4096 - from_offset);
        // SAFETY: both in bounds.
        unsafe { std::ptr::copy(from.0.as_ptr().add(from_offset), self.0.as_ptr().add(offset), len) }
    }

    /// Stores `count` times the eight bytes of `value`, from `offset` up (within the page).
    #[inline]
    pub fn fill_words(self, offset: usize, count: usize, value: u64) {
        assert!(offset <= 4096 && count <= (4096 - offset) / 8);
        // SAFETY: in bounds; the direction flag is clear in Rust code.
        unsafe {
            std::arch::asm!(
                "rep stosq", inout("rcx") count => _, inout("rdi") self.0.as_ptr().add(offset) => _,
                in("rax") value, options(nostack, preserves_flags)
            );
        }
    }

    /// Fills `len` bytes from `offset` with `byte`.
    #[inline]
    pub fn fill(self, offset: usize, len: usize, byte: u8) {
        assert!(offset <= 4096 && len <= 4096 - offset);
        // SAFETY: in bounds.
        unsafe { std::ptr::write_bytes(self.0.as_ptr().add(offset), byte, len) }
    }
}
