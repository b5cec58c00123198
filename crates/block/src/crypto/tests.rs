//! Encrypted images between us and the usual tools, both ways.

use super::luks::Header;
use super::luks_header::HEADER;
use super::{Algorithm, Cipher, Hash, Iv, Mode, Spec};
use crate::formats::qcow2::tests::tool;
use crate::graph::{Graph, tests::graph};
use crate::options::Options;
use crate::types::WriteFlags;
use base::{Result, fail};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use testkit::Dice;

const PASSWORD: &str = "correct horse";
const OBJECT: &str = "secret,id=k,data=correct horse";

/// A vault with the password "k" and a wrong one, "w".
struct Keys;

impl crate::Vault for Keys {
    fn secret(&self, id: &str) -> Result<Vec<u8>> {
        match id {
            "k" => Ok(PASSWORD.into()),
            "w" => Ok(b"wrong".to_vec()),
            _ => Err(fail!("No secret with id '{id}'")),
        }
    }
    fn credentials(&self, id: &str) -> Result<Arc<tls::Credentials>> {
        Err(fail!("No TLS credentials with id '{id}'"))
    }
    fn authorisation(&self, id: &str) -> Result<Arc<dyn tls::Authorise>> {
        Err(fail!("No authorization object with id '{id}'"))
    }
}

fn keyed() -> Arc<Graph> {
    let graph = graph();
    graph.set_vault(Arc::new(Keys));
    graph
}

fn create(graph: &Arc<Graph>, path: &str, mut options: Value) -> Result<()> {
    std::fs::write(path, []).unwrap();
    options["file"] = json!({"driver": "file", "filename": path});
    let at = graph.clone();
    graph.block_on(async move { at.create(Options::json(options)).await })
}

/// Opens an image, writes `(offset, byte, length)` pieces, reads `(offset, length)` back.
fn visit(
    graph: &Arc<Graph>,
    path: &str,
    mut options: Value,
    writes: &[(u64, u8, usize)],
    read: (u64, usize),
) -> Result<Vec<u8>> {
    options["file"] = json!({"driver": "file", "filename": path});
    options["node-name"] = "n".into();
    let (at, writes) = (graph.clone(), writes.to_vec());
    graph.block_on(async move {
        let node = at.add(Options::json(options)).await?;
        for (offset, byte, len) in writes {
            let wrote = node.write(offset, &vec![byte; len], WriteFlags::empty()).await;
            wrote.map_err(|why| fail!("{why}"))?;
        }
        let mut data = vec![0; read.1];
        node.read(read.0, &mut data).await.map_err(|why| fail!("{why}"))?;
        at.delete("n").await?;
        Ok(data)
    })
}

fn qemu_io(image: &str, commands: &[&str]) -> String {
    let mut args = vec!["--object", OBJECT, "--image-opts"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(image);
    tool("qemu-io", &args)
}

fn said<T>(result: Result<T>) -> String {
    result.err().map(|why| why.to_string()).unwrap_or_default()
}

/// Cipher, mode, IV generator, hash.
const RECIPES: [(&str, &str, &str, &str); 14] = [
    ("aes-256", "xts", "plain64", "sha256"),
    ("aes-128", "xts", "plain", "sha512"),
    ("aes-256", "cbc", "essiv", "sha256"),
    ("aes-192", "cbc", "plain64", "sha1"),
    ("aes-128", "ecb", "plain64", "sha1"),
    ("aes-256", "ctr", "plain64", "sha256"),
    ("cast5-128", "cbc", "plain64", "sha256"),
    ("cast5-128", "ctr", "plain", "sha1"),
    ("cast5-128", "ecb", "plain64", "sha256"),
    ("serpent-256", "xts", "plain64", "sha384"),
    ("serpent-256", "ctr", "essiv", "sha256"),
    ("serpent-128", "cbc", "plain", "sha224"),
    ("twofish-256", "cbc", "essiv", "ripemd160"),
    ("twofish-128", "xts", "plain64", "sha256"),
];

#[test]
fn luks_volumes_are_the_same_to_all_tools() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let key_file = path("key");
    std::fs::write(&key_file, PASSWORD).unwrap();
    for (cipher, mode, ivgen, hash) in RECIPES {
        let graph = keyed();
        let (ours, theirs) = (path("ours.luks"), path("theirs.luks"));
        let options = json!({"driver": "luks", "size": 4 << 20, "key-secret": "k", "iter-time": 10,
            "cipher-alg": cipher, "cipher-mode": mode, "ivgen-alg": ivgen, "hash-alg": hash});
        create(&graph, &ours, options).unwrap();
        let open = json!({"driver": "luks", "key-secret": "k"});
        // Requests that are no whole sectors, far and near.
        let writes = [(0, 1, 4096), (1000, 2, 777), ((3 << 20) - 100, 3, 200), (2 << 20, 4, 3 << 19)];
        visit(&graph, &ours, open.clone(), &writes, (0, 512)).unwrap();
        let dump = tool("cryptsetup", &["luksDump", &ours]);
        assert!(dump.contains("ENABLED") && dump.contains(&format!("Hash spec:     \t{hash}")), "{dump}");
        if ["xts", "cbc"].contains(&mode) && cipher.starts_with("aes") {
            // What kernels have the other modes or ciphers for disks is another question.
            tool("cryptsetup", &["luksOpen", "--test-passphrase", "--key-file", &key_file, &ours]);
        }
        let _ = std::fs::remove_file(&theirs);
        if cipher == "aes-192" {
            // QEMU gives up over key material that is no whole number of sectors.
            std::fs::write(&theirs, vec![0; 4 << 20]).unwrap();
            let how = ["--type", "luks1", "--cipher", "aes-cbc-plain64", "--key-size", "192", "--hash", hash];
            let rest = ["--pbkdf-force-iterations", "1000", &theirs, &key_file];
            tool("cryptsetup", &[&["luksFormat", "-q"], &how[..], &rest].concat());
            let data = visit(&graph, &theirs, open.clone(), &[(512, 5, 512)], (512, 512)).unwrap();
            assert!(data == [5; 512]);
            continue;
        }
        let image = format!("driver=luks,key-secret=k,file.filename={ours}");
        let seen = qemu_io(
            &image,
            &["read -P 1 0 512", "read -P 2 1024 512", "read -P 1 2048 2048", "read -P 4 2M 1536k", "length"],
        );
        assert!(!seen.contains("Pattern verification failed") && seen.contains("4 MiB"), "{mode}: {seen}");
        let how = format!(
            "key-secret=k,iter-time=10,cipher-alg={cipher},cipher-mode={mode},ivgen-alg={ivgen},hash-alg={hash}"
        );
        tool("qemu-img", &["create", "-q", "--object", OBJECT, "-f", "luks", "-o", &how, &theirs, "4M"]);
        let image = format!("driver=luks,key-secret=k,file.filename={theirs}");
        qemu_io(&image, &["write -P 9 1M 64k"]);
        let data =
            visit(&graph, &theirs, open.clone(), &[((1 << 20) + 512, 8, 512)], (1 << 20, 2048)).unwrap();
        let expected = [[9; 512], [8; 512], [9; 512], [9; 512]].concat();
        assert!(data == expected, "{cipher} {mode}");
        let seen = qemu_io(&image, &["read -P 8 1049088 512", "read -P 9 1049600 512"]);
        assert!(!seen.contains("Pattern verification failed"), "{seen}");
    }
}

#[test]
fn luks_refuses_wrong_keys_and_wrong_options() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("x.luks").to_str().unwrap().to_string();
    let graph = keyed();
    let make = |more: Value| {
        let mut all = json!({"driver": "luks", "size": 65536, "key-secret": "k", "iter-time": 1});
        for (key, value) in more.as_object().unwrap() {
            all[key] = value.clone();
        }
        said(create(&graph, &image, all))
    };
    assert!(
        make(json!({"ivgen-alg": "essiv", "ivgen-hash-alg": "sha1"}))
            .contains("No AES cipher with key size 20")
    );
    assert!(make(json!({"ivgen-hash-alg": "sha2"})).contains("does not accept value 'sha2'"));
    assert!(make(json!({"iter-time": 0})).contains("iter-time"));
    assert!(make(json!({"key-secret": "none"})).contains("No secret with id 'none'"));
    assert!(make(json!({"cipher-alg": "3des"})).contains("does not accept value"));
    assert!(make(json!({"cipher-alg": "cast5-128"})).contains("mode 'xts' is for blocks of 16 bytes"));
    let essiv = json!({"cipher-alg": "cast5-128", "cipher-mode": "cbc", "ivgen-alg": "essiv"});
    assert_eq!(make(essiv), "Cipher cast5-128 not supported with essiv");
    assert!(make(json!({"size": i64::MAX})).contains("too large"));
    assert_eq!(make(json!({})), "");
    let open = |options: Value| said(visit(&graph, &image, options, &[], (0, 512)));
    assert_eq!(open(json!({"driver": "luks"})), "Parameter 'key-secret' is required for cipher");
    let wrong = open(json!({"driver": "luks", "key-secret": "w"}));
    assert_eq!(wrong, "Invalid password, cannot unlock any keyslot");
    assert_eq!(open(json!({"driver": "luks", "key-secret": "k"})), "");
    let whole = std::fs::read(&image).unwrap();
    std::fs::write(&image, &whole[..whole.len() - 65536 - 512]).unwrap();
    assert!(open(json!({"driver": "luks", "key-secret": "k"})).contains("payload"));
    std::fs::write(&image, &whole[..2000]).unwrap();
    assert!(open(json!({"driver": "luks", "key-secret": "k"})).contains("Keyslot 0 lies outside"));
    std::fs::write(&image, &whole[..300]).unwrap();
    assert!(open(json!({"driver": "luks", "key-secret": "k"})).contains("Unable to read LUKS header"));
}

#[test]
fn spoilt_luks_headers_are_refused_or_make_sense() {
    let spec = Spec { algorithm: Algorithm::Aes, key: 32, mode: Mode::Xts, iv: Some(Iv::Plain64) };
    let mut header = Header {
        spec,
        hash: Hash::Sha256,
        payload: 4096,
        digest: [1; 20],
        digest_salt: [2; 32],
        digest_rounds: 1000,
        uuid: "u".into(),
        slots: Default::default(),
    };
    for (index, slot) in header.slots.iter_mut().enumerate() {
        (slot.offset, slot.rounds) = (8 + 504 * index as u32, 1000);
    }
    header.slots[0].active = true;
    let whole = header.encode();
    assert_eq!(Header::parse(&whole).unwrap(), header);
    let mut dice = Dice::new(3);
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        let at = dice.roll() as usize % HEADER;
        bytes[at] = dice.roll() as u8;
        match Header::parse(&bytes) {
            Err(_) => refused += 1,
            // What is taken can be written down again.
            Ok(taken) => assert_eq!(Header::parse(&taken.encode()).unwrap(), taken),
        }
    }
    assert!(refused > 1000);
    for (what, at, bytes) in [
        ("slot over the header", 208 + 40, 0u32),
        ("slot over the payload", 208 + 40, 4000),
        ("slot over another", 208 + 40, 520),
        ("no rounds", 208 + 4, 0),
        ("rounds for years", 208 + 4, u32::MAX),
        ("other stripes", 208 + 44, 4001),
        ("a huge key", 108, u32::MAX),
        ("an odd key", 108, 63),
        ("no payload", 104, 0),
        ("a state that is none", 208, 1),
    ] {
        let mut spoilt = whole.clone();
        spoilt[at..at + 4].copy_from_slice(&bytes.to_be_bytes());
        assert!(Header::parse(&spoilt).is_err(), "{what}");
    }
}

#[test]
fn modes_undo_themselves_and_sectors_differ() {
    let plain: Vec<u8> = (0..1024u32).map(|at| (at / 3) as u8).collect();
    for (text, bytes) in
        [("xts-plain64", 64), ("xts-plain", 32), ("cbc-essiv:sha256", 16), ("cbc-plain64", 24)]
    {
        let cipher =
            Cipher::new(&Spec::parse(Algorithm::Aes, text, bytes).unwrap(), &vec![7; bytes]).unwrap();
        let (mut one, mut other) = (plain.clone(), plain.clone());
        cipher.encrypt(5, &mut one);
        cipher.encrypt(6, &mut other);
        assert!(one != plain && one != other && one[512..] != one[..512], "{text}");
        // A run of sectors is its sectors one by one.
        let mut second = plain[512..].to_vec();
        cipher.encrypt(6, &mut second);
        assert!(second == one[512..], "{text}");
        cipher.decrypt(5, &mut one);
        assert!(one == plain, "{text}");
    }
    assert!(
        Spec::parse(Algorithm::Aes, "xts-plain64", 40).is_err()
            && Spec::parse(Algorithm::Aes, "cbc", 16).is_err()
    );
    assert!(
        Spec::parse(Algorithm::Aes, "cbc-essiv:sha1", 16).is_err()
            && Spec::parse(Algorithm::Aes, "ofb-plain", 16).is_err()
            && Spec::parse(Algorithm::Cast5, "xts-plain", 16).is_err()
    );
}

/// As `qemu-img check` and `info` say.
fn judge_qcow2(path: &str) -> Value {
    let image = format!("driver=qcow2,encrypt.key-secret=k,file.filename={path}");
    tool("qemu-img", &["check", "-q", "--object", OBJECT, "--image-opts", &image]);
    let text = tool("qemu-img", &["info", "--output=json", path]);
    serde_json::from_str(&text).unwrap()
}

#[test]
fn encrypted_qcow2_is_the_same_to_all_tools() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let open = json!({"driver": "qcow2", "encrypt": {"format": "luks", "key-secret": "k"}});
    for cluster in [65536u64, 512, 16384] {
        let graph = keyed();
        let (ours, theirs) = (path("ours.qcow2"), path("theirs.qcow2"));
        let options = json!({"driver": "qcow2", "size": 8 << 20, "cluster-size": cluster,
            "extended-l2": cluster == 16384,
            "encrypt": {"format": "luks", "key-secret": "k", "iter-time": 10}});
        create(&graph, &ours, options).unwrap();
        let writes = [(0, 1, 4096), (1000, 2, 777), ((3 << 20) - 100, 3, 200), (2 << 20, 4, 3 << 19)];
        let data = visit(&graph, &ours, open.clone(), &writes, (512, 1024)).unwrap();
        assert!(data[..488] == [1; 488] && data[488..] == [2; 536]);
        let info = judge_qcow2(&ours);
        assert_eq!(info["encrypted"], true);
        assert_eq!(info["format-specific"]["data"]["encrypt"]["cipher-alg"], "aes-256");
        let image = format!("driver=qcow2,encrypt.key-secret=k,file.filename={ours}");
        let seen = qemu_io(
            &image,
            &[
                "read -P 1 0 512",
                "read -P 2 1024 512",
                "read -P 1 2048 2048",
                "read -P 0 4096 1M",
                "read -P 4 2M 1536k",
            ],
        );
        assert!(!seen.contains("Pattern verification failed"), "{cluster}: {seen}");
        // Nothing of it stands in the file.
        let raw = std::fs::read(&ours).unwrap();
        assert!(!raw.windows(512).any(|piece| piece == [1; 512] || piece == [4; 512]));
        let _ = std::fs::remove_file(&theirs);
        let how =
            format!("encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10,cluster_size={cluster}");
        tool("qemu-img", &["create", "-q", "--object", OBJECT, "-f", "qcow2", "-o", &how, &theirs, "8M"]);
        let image = format!("driver=qcow2,encrypt.key-secret=k,file.filename={theirs}");
        qemu_io(&image, &["write -P 9 1M 64k"]);
        let data = visit(
            &graph,
            &theirs,
            open.clone(),
            &[((1 << 20) + 512, 8, 512), (5 << 20, 7, 100)],
            (1 << 20, 1536),
        );
        assert!(data.unwrap() == [[9; 512], [8; 512], [9; 512]].concat());
        let seen = qemu_io(
            &image,
            &["read -P 8 1049088 512", "read -P 9 1049600 512", "read -P 7 -s 0 -l 100 5M 512"],
        );
        assert!(!seen.contains("Pattern verification failed"), "{seen}");
        judge_qcow2(&theirs);
    }
}

#[test]
fn old_aes_qcow2_is_read_and_written_and_keys_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (old, new) = (path("old.qcow2"), path("new.qcow2"));
    let graph = keyed();
    let how = "encrypt.format=aes,encrypt.key-secret=k";
    tool("qemu-img", &["create", "-q", "--object", OBJECT, "-f", "qcow2", "-o", how, &old, "4M"]);
    let image = format!("driver=qcow2,encrypt.key-secret=k,file.filename={old}");
    qemu_io(&image, &["write -P 9 1M 64k"]);
    let open = json!({"driver": "qcow2", "encrypt": {"format": "aes", "key-secret": "k"}});
    let data = visit(&graph, &old, open, &[((1 << 20) + 512, 8, 512)], (1 << 20, 1536)).unwrap();
    assert!(data == [[9; 512], [8; 512], [9; 512]].concat());
    let seen = qemu_io(&image, &["read -P 8 1049088 512", "read -P 9 1049600 512"]);
    assert!(!seen.contains("Pattern verification failed"), "{seen}");
    judge_qcow2(&old);

    let encrypt = |encrypt: Value| json!({"driver": "qcow2", "size": 1 << 20, "encrypt": encrypt});
    let make = |options: Value| said(create(&graph, &new, options));
    assert!(make(encrypt(json!({"format": "aes", "key-secret": "k"}))).contains("not made"));
    assert!(make(encrypt(json!({"format": "luks"}))).contains("'key-secret' is missing"));
    assert!(make(encrypt(json!({"format": "luks", "key-secret": "k", "x": 1}))).contains("encrypt.x"));
    assert_eq!(make(encrypt(json!({"format": "luks", "key-secret": "k", "iter-time": 1}))), "");
    let with = |encrypt: Value| {
        let options = json!({"driver": "qcow2", "encrypt": encrypt});
        said(visit(&graph, &new, options, &[], (0, 512)))
    };
    let bare = said(visit(&graph, &new, json!({"driver": "qcow2"}), &[], (0, 512)));
    assert_eq!(bare, "Parameter 'encrypt.key-secret' is required for cipher");
    assert_eq!(
        with(json!({"format": "luks", "key-secret": "w"})),
        "Invalid password, cannot unlock any keyslot"
    );
    assert!(with(json!({"format": "aes", "key-secret": "k"})).contains("Header reported 'luks'"));
    assert_eq!(with(json!({"key-secret": "k"})), "");
    assert!(Path::new(&new).exists());
    assert_eq!(make(json!({"driver": "qcow2", "size": 1 << 20})), "");
    assert!(with(json!({"format": "luks", "key-secret": "k"})).contains("No encryption in image header"));
}
