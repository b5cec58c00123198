//! How the host provides memory for long lists.

use rustix::mm::{Advice, madvise};

const PAGE: usize = 4096;

/// Lets the host's kernel give large pages to the room of `list`, where it can (madvise(2),
/// MADV_HUGEPAGE): thousands of small ones take long to come. Only advice; the list stays as it is.
pub fn prefer_large_pages<T>(list: &Vec<T>) {
    let start = list.as_ptr() as usize;
    let first = start.next_multiple_of(PAGE);
    let end = (start + list.capacity() * size_of::<T>()) & !(PAGE - 1);
    if end > first {
        // SAFETY: whole pages of the list's own allocation; the advice leaves their contents alone.
        let _ = unsafe { madvise(first as *mut _, end - first, Advice::LinuxHugepage) };
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn advice_changes_nothing() {
        let mut list: Vec<u64> = Vec::with_capacity(1 << 20);
        list.extend(0..1000);
        super::prefer_large_pages(&list);
        list.extend(1000..1 << 20);
        assert!(list.iter().enumerate().all(|(n, &value)| n as u64 == value));
        super::prefer_large_pages(&Vec::<u8>::new());
        super::prefer_large_pages(&vec![(); 10]);
    }
}
