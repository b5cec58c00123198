use super::feature::{INFO, all, find};
use super::*;

fn offer() -> Offer {
    Offer { engine: "interpreter".into(), features: software_features(|_| true), host: None, phys_bits: 40 }
}

fn resolve(text: &str) -> CpuModel {
    Request::parse(text).unwrap().resolve(&offer()).unwrap()
}

#[test]
fn names_are_found_by_every_spelling() {
    for (a, b) in [
        ("sse4.1", "sse4-1"),
        ("sse4_2", "sse4.2"),
        ("lahf_lm", "lahf-lm"),
        ("sse3", "pni"),
        ("tsc_adjust", "tsc-adjust"),
    ] {
        assert_eq!(find(a).unwrap(), find(b).unwrap());
    }
    assert!(find("sse5").is_none());
    let place = |name: &str| find(name).map(|f| (INFO[f.word as usize].place(), f.bit)).unwrap();
    assert_eq!(place("x2apic"), ("CPUID.01H:ECX".into(), 21));
    assert_eq!(place("hypervisor"), ("CPUID.01H:ECX".into(), 31));
    assert_eq!(place("sha-ni"), ("CPUID.07H:EBX".into(), 29));
    assert_eq!(place("vpclmulqdq"), ("CPUID.07H:ECX".into(), 10));
    assert_eq!(place("fsrm"), ("CPUID.07H:EDX".into(), 4));
    assert_eq!(place("ssbd"), ("CPUID.07H:EDX".into(), 31));
    assert_eq!(place("rdpid"), ("CPUID.07H:ECX".into(), 22));
    assert_eq!(place("spec-ctrl"), ("CPUID.07H:EDX".into(), 26));
    assert_eq!(place("lm"), ("CPUID.80000001H:EDX".into(), 29));
    assert_eq!(place("topoext"), ("CPUID.80000001H:ECX".into(), 22));
    assert_eq!(place("perfctr-core"), ("CPUID.80000001H:ECX".into(), 23));
    assert_eq!(place("amd-ssbd"), ("CPUID.80000008H:EBX".into(), 24));
    assert_eq!(place("vgif"), ("CPUID.8000000AH:EDX".into(), 16));
    assert_eq!(place("kvmclock-stable-bit"), ("CPUID.40000001H:EAX".into(), 24));
    assert!(INFO.iter().zip(0..).all(|(info, i)| info.word as usize == i && info.names().all(|n| n.0 < 32)));
    let mut names: Vec<_> = all().map(|f| f.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all().count());
}

#[test]
fn qemu64_is_what_guests_expect() {
    let model = resolve("qemu64");
    assert!(model.warnings.is_empty(), "{:?}", model.warnings);
    let table = model.table(&Topology::default(), 0);
    assert_eq!(table.signature(), 0x0006_0fb1);
    assert_eq!(table.query(0, 0).ebx, u32::from_le_bytes(*b"Auth"));
    assert_eq!(table.query(1, 0).edx, 0x078b_fbfd);
    assert_eq!(table.query(1, 0).ecx, 0x8000_2001);
    assert_eq!(table.query(0x8000_0001, 0).ecx, 1);
    assert_eq!(table.query(0x8000_0001, 0).edx & 0x2010_0800, 0x2010_0800);
    assert_eq!(table.query(0x8000_0008, 0).eax, 0x3028);
    assert_eq!(table.query(0x4000_0000, 0).ebx, u32::from_le_bytes(*b"TCGT"));
    let brand = table.query(0x8000_0002, 0).eax.to_le_bytes();
    assert_eq!(&brand, b"QEMU");
}

#[test]
fn every_model_resolves_and_its_missing_features_are_named() {
    for definition in definitions(&offer()) {
        let model = resolve(&definition.name);
        let table = model.table(&Topology { sockets: 1, dies: 1, cores: 2, threads: 2 }, 3);
        assert_eq!(table.query(0, 0).eax, model.level, "{}", definition.name);
        for f in all().filter(|f| model.features.has(*f)) {
            assert!(table.features().has(f), "{} shows {}", definition.name, f.name);
        }
        assert_eq!(model.warnings.len(), model.unavailable.len());
        assert_eq!(definition.typename, format!("{}-x86_64-cpu", definition.name));
    }
    let names: Vec<_> = definitions(&offer()).into_iter().map(|d| d.name).collect();
    for name in "486 pentium pentium2 pentium3 athlon coreduo core2duo kvm32 kvm64 qemu32 qemu64 n270 phenom Conroe Penryn \
                 Nehalem Westmere SandyBridge IvyBridge Haswell Haswell-noTSX Broadwell Broadwell-noTSX Opteron_G1 Opteron_G2 \
                 Opteron_G3 Opteron_G4 Opteron_G5 EPYC EPYC-Rome max Skylake-Client Haswell-v2"
        .split_ascii_whitespace()
    {
        assert!(names.iter().any(|n| n == name), "{name}");
    }
    let notsx = definitions(&offer()).into_iter().find(|d| d.name == "Haswell-noTSX").unwrap();
    assert_eq!(notsx.alias_of.as_deref(), Some("Haswell-v2"));
}

#[test]
fn wishes_are_honoured() {
    let model = resolve(
        "qemu64,+sse4.1,ssse3=on,-nx,vendor=GenuineIntel,family=6,model=0x3a,stepping=9,model-id=My CPU",
    );
    assert!(
        model.features.contains("sse4-1")
            && model.features.contains("ssse3")
            && !model.features.contains("nx")
    );
    let table = model.table(&Topology::default(), 0);
    assert_eq!(table.signature(), 0x306a9);
    assert_eq!(table.query(0, 0).ebx, u32::from_le_bytes(*b"Genu"));
    assert!(!resolve("max,-xsave").features.contains("avx"), "AVX needs XSAVE");
    assert!(!resolve("max,-avx,avx=on").features.contains("avx"), "minus wins");
    assert!(resolve("486,level=13").level == 13);
    assert_eq!(resolve("486").features.list().len(), 4);
    assert!(
        !resolve("qemu64,hypervisor=off")
            .table(&Topology::default(), 0)
            .leaves
            .iter()
            .any(|l| l.0 == 0x4000_0000)
    );
}

#[test]
fn what_cannot_be_had_is_said() {
    let model = resolve("qemu64,+amx-tile,+vmx");
    assert_eq!(model.unavailable, ["vmx", "amx-tile"]);
    assert_eq!(model.warnings[0], "interpreter doesn't support requested feature: CPUID.01H:ECX.vmx [bit 5]");
    let fail = |text: &str| Request::parse(text).and_then(|r| r.resolve(&offer())).unwrap_err().text;
    assert_eq!(fail("qemu64,+vmx,enforce"), "interpreter doesn't support requested features");
    let hint = |text: &str| Request::parse(text).and_then(|r| r.resolve(&offer())).unwrap_err().hint;
    assert_eq!(hint("Haswel").as_deref(), Some("Did you mean 'Haswell'?"));
    assert_eq!(hint("qemu64,+sse4.3").as_deref(), Some("Did you mean 'sse4.1'?"));
    assert_eq!(fail("nonsense"), "unable to find CPU model 'nonsense'");
    assert_eq!(fail("host"), "unable to find CPU model 'host'");
    assert_eq!(fail("qemu64,+frob"), "Property 'qemu64-x86_64-cpu.frob' not found");
    assert_eq!(fail("qemu64,frob=1"), "Property 'qemu64-x86_64-cpu.frob' not found");
    assert_eq!(fail("qemu64,nx=maybe"), "Parameter 'nx' expects 'on' or 'off'");
    assert_eq!(fail("qemu64,level=x"), "Parameter 'level' expects a number");
    assert!(fail("qemu64,stepping=99").contains("maximum: 15"));
    assert!(fail("qemu64,vendor=short").contains("vendor"));
    assert!(fail("qemu64,phys-bits=20").contains("between 32 and 52"));
    assert!(Request::parse("").is_err());
    assert!(resolve("qemu64,+vmx,check=off").warnings.is_empty());
}

#[test]
fn topology_is_told_consistently() {
    let topology = Topology { sockets: 2, dies: 1, cores: 3, threads: 2 };
    assert_eq!(
        (0..12).map(|i| topology.apic_id(i)).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]
    );
    let table = resolve("Haswell-noTSX").table(&topology, topology.apic_id(7));
    assert_eq!(table.query(1, 0).ebx >> 24, 9);
    assert_eq!(table.query(1, 0).ebx >> 16 & 0xff, 6);
    assert_eq!(table.query(0xb, 0), crate::cpuid::Leaf { eax: 1, ebx: 2, ecx: 0x100, edx: 9 });
    assert_eq!(table.query(0xb, 1), crate::cpuid::Leaf { eax: 3, ebx: 6, ecx: 0x201, edx: 9 });
    assert_eq!(table.query(4, 0).eax >> 14 & 0xfff, 1);
    assert_eq!(table.query(4, 3).eax >> 14 & 0xfff, 7);
    assert_eq!(table.query(4, 4).eax, 0);
    let epyc = resolve("EPYC").table(&topology, 9);
    assert_eq!(epyc.query(0x8000_001e, 0).eax, 9);
    assert_eq!(epyc.query(0x8000_001e, 0).ebx, 0x100);
    assert_eq!(epyc.query(0x8000_001e, 0).ecx, 1);
    let dies = Topology { sockets: 1, dies: 2, cores: 2, threads: 1 };
    let table = resolve("Haswell-noTSX").table(&dies, 3);
    assert_eq!(table.query(0, 0).eax, 0x1f);
    assert_eq!(table.query(0x1f, 2).ecx, 0x502);
}

#[test]
fn xsave_leaf_has_the_architected_sizes() {
    let table = resolve("Haswell-noTSX").table(&Topology::default(), 0);
    assert_eq!(table.query(0xd, 0).eax, 7);
    assert_eq!(table.query(0xd, 0).ecx, 832);
    assert_eq!((table.query(0xd, 2).eax, table.query(0xd, 2).ebx), (256, 576));
    assert!(executes(&Features::of_table(&table), iced_x86::CpuidFeature::AVX2));
    assert!(!executes(&Features::of_table(&table), iced_x86::CpuidFeature::AVX512F));
    let table = resolve("Icelake-Server-v4,-pku,-la57").table(&Topology::default(), 0);
    assert_eq!(table.signature(), 0x606a0);
    assert_eq!((table.query(0xd, 0).eax, table.query(0xd, 0).ecx), (0xe7, 2688));
    assert_eq!((table.query(0xd, 6).eax, table.query(0xd, 6).ebx), (512, 1152));
    assert_eq!(table.query(0xd, 1).ebx, 2432);
    let [avx, .., high] = crate::xsave::COMPONENTS;
    assert_eq!((high.place(None), high.place(Some(0xe7)), high.place(Some(0x81))), (1664, 1408, 576));
    assert_eq!((avx.place(None), avx.place(Some(0xe7))), (576, 576));
    assert!(executes(&Features::of_table(&table), iced_x86::CpuidFeature::AVX512_BITALG));
    assert!(!executes(&Features::of_table(&table), iced_x86::CpuidFeature::AVX512_BF16));
    let table = resolve("Icelake-Server,-avx2").table(&Topology::default(), 0);
    assert_eq!(table.query(0xd, 0).eax, 7);
    assert!(!executes(&Features::of_table(&table), iced_x86::CpuidFeature::AVX512BW), "AVX-512 needs AVX2");
    assert!(!executes(
        &Features::of_table(&resolve("qemu64").table(&Topology::default(), 0)),
        iced_x86::CpuidFeature::SSE4_1
    ));
}
