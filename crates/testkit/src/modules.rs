//! Kernel modules of a Debian kernel package, with those they need.

use crate::guests::{Result, package};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Name and contents of the modules and all that they depend on, in the order of loading.
pub fn modules(package_name: &str, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut all = BTreeMap::new();
    find(&package(package_name)?.join("lib/modules"), &mut all);
    let mut list = Vec::new();
    for name in names {
        add(&all, name, &mut list)?;
    }
    Ok(list)
}

fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn find(dir: &Path, all: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            find(&path, all);
        } else if path.extension().is_some_and(|ext| ext == "ko")
            && let Some(stem) = path.file_stem()
        {
            all.insert(plain(&stem.to_string_lossy()), path);
        }
    }
}

fn add(all: &BTreeMap<String, PathBuf>, name: &str, list: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let name = plain(name);
    if list.iter().any(|(known, _)| *known == name) {
        return Ok(());
    }
    let path = all.get(&name).ok_or_else(|| format!("the kernel has no module {name}"))?;
    let bytes = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    for needed in depends(&bytes) {
        add(all, &needed, list)?;
    }
    list.push((name, bytes));
    Ok(())
}

/// The `depends=` entry of a module's information section.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let text = &module[at + KEY.len()..];
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    let text = String::from_utf8_lossy(&text[..end]).into_owned();
    text.split(',').filter(|name| !name.is_empty()).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read() {
        assert_eq!(
            depends(b"x\0license=GPL\0depends=virtio_ring,virtio\0name=y\0"),
            ["virtio_ring", "virtio"]
        );
        assert_eq!(depends(b"\0depends=\0"), Vec::<String>::new());
        assert_eq!(depends(b"nothing"), Vec::<String>::new());
    }
}
