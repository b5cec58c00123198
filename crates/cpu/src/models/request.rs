//! `-cpu MODEL[,+feature][,-feature][,key=value]...`

use super::feature::{self, Feature, INFO};
use super::{Features, Identity, Offer, catalog};
use base::{Failure, Result};

/// A parsed `-cpu` argument.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub model: String,
    features: Vec<(Feature, bool)>,
    vendor: Option<String>,
    model_id: Option<String>,
    numbers: Vec<(Number, u64)>,
    enforce: bool,
    check: Option<bool>,
    migratable: Option<bool>,
    host_phys_bits: bool,
    host_cache_info: bool,
    kvm: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Level,
    MinLevel,
    XLevel,
    MinXLevel,
    Family,
    Model,
    Stepping,
    PhysBits,
    TscFrequency,
}

/// The largest value of a number and its key.
const NUMBERS: [(&str, Number, u64); 9] = [
    ("level", Number::Level, 0xffff_ffff),
    ("min-level", Number::MinLevel, 0xffff_ffff),
    ("xlevel", Number::XLevel, 0xffff_ffff),
    ("min-xlevel", Number::MinXLevel, 0xffff_ffff),
    ("family", Number::Family, 255 + 15),
    ("model", Number::Model, 255),
    ("stepping", Number::Stepping, 15),
    ("phys-bits", Number::PhysBits, 52),
    ("tsc-frequency", Number::TscFrequency, 1 << 40),
];

/// A CPU after its model, the user's wishes and the engine have met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    pub name: String,
    pub features: Features,
    pub identity: Identity,
    pub level: u32,
    pub xlevel: u32,
    pub phys_bits: u32,
    /// Wished TSC frequency in Hz.
    pub tsc_frequency: Option<u64>,
    /// Features asked for that the engine lacks.
    pub unavailable: Vec<&'static str>,
    /// Lines for the user, without the `warning: ` in front.
    pub warnings: Vec<String>,
    /// The hypervisor leaves say KVM (the engine is KVM and `kvm=off` was not given).
    pub shows_kvm: bool,
}

/// One property of an expanded model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Property {
    Bool(bool),
    Number(u64),
    Text(String),
}

fn parse_bool(key: &str, value: &str) -> Result<bool> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(Failure::new(format!("Parameter '{key}' expects 'on' or 'off'"))),
    }
}

fn parse_number(key: &str, value: &str) -> Result<u64> {
    let hex = value.strip_prefix("0x").or_else(|| value.strip_prefix("0X"));
    let parsed = match hex {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => value.parse(),
    };
    parsed.map_err(|_| Failure::new(format!("Parameter '{key}' expects a number")))
}

impl Request {
    pub fn parse(text: &str) -> Result<Request> {
        let mut parts = text.split(',');
        let model = parts.next().unwrap_or_default().to_owned();
        if model.is_empty() {
            return Err(Failure::new("-cpu option cannot be empty"));
        }
        let mut request = Request { model, ..Request::default() };
        let (mut plus, mut minus) = (Vec::new(), Vec::new());
        for part in parts.filter(|p| !p.is_empty()) {
            if let Some(name) = part.strip_prefix('+') {
                plus.push((request.feature(name)?, true));
            } else if let Some(name) = part.strip_prefix('-') {
                minus.push((request.feature(name)?, false));
            } else {
                let (key, value) = part.split_once('=').unwrap_or((part, "on"));
                request.set(key, value)?;
            }
        }
        // `+` and `-` win over `key=value`, and `-` over `+`, whatever their order.
        request.features.extend(plus);
        request.features.extend(minus);
        Ok(request)
    }

    fn feature(&self, name: &str) -> Result<Feature> {
        feature::find(name).ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, key: &str) -> Failure {
        let failure = Failure::new(format!("Property '{}-x86_64-cpu.{key}' not found", self.model));
        match spec::nearest(key, feature::all().map(|feature| feature.name)) {
            Some(near) => failure.hint(format!("Did you mean '{near}'?")),
            None => failure,
        }
    }

    /// Applies one `key=value`; also for `query-cpu-model-expansion`'s props.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let name = key.replace('_', "-");
        if let Some(&(_, number, max)) = NUMBERS.iter().find(|n| n.0 == name) {
            let parsed = parse_number(key, value)?;
            if parsed > max {
                let text = format!(
                    "Property {}-x86_64-cpu.{key} doesn't take value {parsed} (minimum: 0, maximum: {max})",
                    self.model
                );
                return Err(Failure::new(text));
            }
            self.numbers.push((number, parsed));
            return Ok(());
        }
        match name.as_str() {
            "vendor" if value.len() == 12 && value.is_ascii() => self.vendor = Some(value.to_owned()),
            "vendor" => {
                return Err(Failure::new(format!(
                    "Property '{}-x86_64-cpu.vendor' doesn't take value '{value}'",
                    self.model
                )));
            }
            "model-id" => self.model_id = Some(value.chars().take(48).collect()),
            "enforce" => self.enforce = parse_bool(key, value)?,
            "check" => self.check = Some(parse_bool(key, value)?),
            "migratable" => self.migratable = Some(parse_bool(key, value)?),
            "host-phys-bits" => self.host_phys_bits = parse_bool(key, value)?,
            "host-cache-info" => self.host_cache_info = parse_bool(key, value)?,
            "kvm" => self.kvm = Some(parse_bool(key, value)?),
            _ => {
                let feature = self.feature(key)?;
                self.features.push((feature, parse_bool(key, value)?));
            }
        }
        Ok(())
    }

    fn number(&self, wanted: Number) -> Option<u64> {
        self.numbers.iter().rev().find(|n| n.0 == wanted).map(|n| n.1)
    }

    /// Meets the request with what an engine can do. Missing features are left out with a
    /// warning; with `enforce` they are an error.
    pub fn resolve(&self, offer: &Offer) -> Result<CpuModel> {
        let mut model = self.start(offer)?;
        let implied = implied(offer);
        let mut wanted = model.features.union(&implied);
        for &(feature, on) in &self.features {
            wanted.set(feature, on);
        }
        self.apply_identity(&mut model, offer)?;
        let lacking = wanted.without(&offer.features.union(&implied));
        model.features = wanted.without(&lacking);
        model.unavailable = lacking.list();
        if self.check.unwrap_or(true) || self.enforce {
            model.warnings = missing_lines(&offer.engine, &lacking);
        }
        if self.enforce && !model.unavailable.is_empty() {
            let hint = model.warnings.join("\n");
            return Err(
                Failure::new(format!("{} doesn't support requested features", offer.engine)).hint(hint)
            );
        }
        drop_dependent(&mut model.features);
        self.set_levels(&mut model);
        model.shows_kvm = self.kvm.unwrap_or(true) && offer.engine == "KVM";
        Ok(model)
    }

    fn start(&self, offer: &Offer) -> Result<CpuModel> {
        let unknown = || {
            let failure = Failure::new(format!("unable to find CPU model '{}'", self.model));
            match spec::nearest(&self.model, catalog::plain_names()) {
                Some(near) if near != self.model => failure.hint(format!("Did you mean '{near}'?")),
                _ => failure.hint("Use -cpu help to list the models"),
            }
        };
        let plain = |features, identity, level, xlevel| CpuModel {
            name: self.model.clone(),
            features,
            identity,
            level,
            xlevel,
            phys_bits: offer.phys_bits,
            tsc_frequency: self.number(Number::TscFrequency),
            unavailable: Vec::new(),
            warnings: Vec::new(),
            shows_kvm: false,
        };
        let identity = |vendor: &str, (family, model, stepping), brand: &str| Identity {
            vendor: vendor.to_owned(),
            family,
            model,
            stepping,
            brand: brand.to_owned(),
        };
        Ok(match self.model.as_str() {
            "base" => plain(Features::default(), identity("AuthenticAMD", (0, 0, 0), ""), 0, 0),
            "max" => {
                let own = identity("AuthenticAMD", (15, 107, 1), "Ryokan software CPU");
                plain(
                    offer.features,
                    offer.host.clone().filter(|_| offer.engine == "KVM").unwrap_or(own),
                    0xd,
                    0x8000_000a,
                )
            }
            "host" => {
                let host = offer.host.clone().ok_or_else(unknown)?;
                plain(offer.features, host, 0xd, 0x8000_0008)
            }
            name => {
                let chosen = catalog::find(name).ok_or_else(unknown)?;
                let m = chosen.model;
                let id = identity(m.vendor, chosen.signature, chosen.model_id);
                // The virtual extensions of these two models are not for machines without them.
                let quiet = if m.name == "qemu64" || m.name == "phenom" { "svm npt lbrv" } else { "" };
                let absent = Features::named(quiet).without(&offer.features);
                plain(chosen.features.without(&absent), id, m.level, m.xlevel)
            }
        })
    }

    fn apply_identity(&self, model: &mut CpuModel, offer: &Offer) -> Result<()> {
        let pick = |number, old: u32| self.number(number).map_or(old, |v| v as u32);
        let id = &mut model.identity;
        id.family = pick(Number::Family, id.family);
        id.model = pick(Number::Model, id.model);
        id.stepping = pick(Number::Stepping, id.stepping);
        if let Some(vendor) = &self.vendor {
            id.vendor.clone_from(vendor);
        }
        if let Some(text) = &self.model_id {
            id.brand.clone_from(text);
        }
        if let Some(bits) = self.number(Number::PhysBits).filter(|&bits| bits != 0) {
            if !(32..=52).contains(&bits) {
                return Err(Failure::new(format!("phys-bits should be between 32 and 52  (but is {bits})")));
            }
            if bits > u64::from(offer.phys_bits) && offer.engine != "KVM" {
                let text = format!("the {} supports at most phys-bits={}", offer.engine, offer.phys_bits);
                return Err(Failure::new(text));
            }
            model.phys_bits = bits as u32;
        }
        if self.host_phys_bits && offer.host.is_none() {
            return Err(Failure::new("host-phys-bits needs an engine that runs on the host processor"));
        }
        Ok(())
    }

    /// Levels: as asked, otherwise the model's, raised to what its features need.
    fn set_levels(&self, model: &mut CpuModel) {
        let has = |name: &str| model.features.contains(name);
        let used = |leaf: u32| INFO.iter().any(|i| i.leaf == leaf && model.features.word(i.word) != 0);
        let mut level = model.level;
        let mut xlevel = model.xlevel;
        for leaf in [1, 6, 7, 0xd] {
            if used(leaf) || leaf == 0xd && has("xsave") {
                level = level.max(leaf);
            }
        }
        for leaf in [0x8000_0001, 0x8000_0007, 0x8000_0008, 0x8000_000a] {
            if used(leaf) {
                xlevel = xlevel.max(leaf);
            }
        }
        if has("topoext") {
            xlevel = xlevel.max(0x8000_001e);
        }
        let at_least = |min: Option<u64>, value: u32| value.max(min.unwrap_or(0) as u32);
        level = at_least(self.number(Number::MinLevel), level);
        xlevel = at_least(self.number(Number::MinXLevel), xlevel);
        model.level = self.number(Number::Level).map_or(level, |v| v as u32);
        model.xlevel = self.number(Number::XLevel).map_or(xlevel, |v| v as u32);
    }
}

/// Features every guest of a hypervisor gets.
fn implied(offer: &Offer) -> Features {
    let mut names = String::from("hypervisor");
    for name in ["x2apic", "tsc-adjust"] {
        if offer.engine == "KVM" && offer.features.contains(name) {
            names.push(' ');
            names.push_str(name);
        }
    }
    Features::named(&names)
}

/// Takes out features whose foundation is missing (AVX needs XSAVE, and so on).
fn drop_dependent(features: &mut Features) {
    const NEEDS: [(&str, &str); 9] = [
        ("xsave", "avx xsaveopt xsavec xgetbv1 xsaves pku"),
        ("avx", "avx2 fma f16c vaes vpclmulqdq avx-vnni xop fma4 avx512f"),
        ("avx2", "avx512f"),
        (
            "avx512f",
            "avx512bw avx512cd avx512dq avx512vl avx512ifma avx512vbmi avx512vbmi2 avx512vnni avx512bitalg \
             avx512-vpopcntdq avx512-bf16 avx512-fp16 avx512-vp2intersect avx512-4vnniw avx512-4fmaps avx512pf avx512er",
        ),
        ("lm", "pcid invpcid"),
        ("pcid", "invpcid"),
        (
            "svm",
            "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid decodeassists pause-filter pfthreshold avic v-vmsave-vmload vgif",
        ),
        ("sse", "sse2"),
        ("sse2", "pni ssse3 sse4.1 sse4.2 sse4a aes pclmulqdq sha-ni gfni"),
    ];
    for (base, dependent) in NEEDS {
        if !features.contains(base) {
            *features = features.without(&Features::named(dependent));
        }
    }
}

fn missing_lines(engine: &str, lacking: &Features) -> Vec<String> {
    feature::all()
        .filter(|f| lacking.has(*f))
        .filter_map(|f| {
            let info = INFO.iter().find(|i| i.word == f.word)?;
            Some(format!(
                "{engine} doesn't support requested feature: {}.{} [bit {}]",
                info.place(),
                f.name,
                f.bit
            ))
        })
        .collect()
}

impl CpuModel {
    /// Every feature by name with its value, and the identity: a `full` expansion.
    pub fn properties(&self) -> Vec<(&'static str, Property)> {
        let id = &self.identity;
        let mut list: Vec<_> =
            feature::all().map(|f| (f.name, Property::Bool(self.features.has(f)))).collect();
        list.extend([
            ("vendor", Property::Text(id.vendor.clone())),
            ("model-id", Property::Text(id.brand.clone())),
            ("family", Property::Number(id.family.into())),
            ("model", Property::Number(id.model.into())),
            ("stepping", Property::Number(id.stepping.into())),
            ("level", Property::Number(self.level.into())),
            ("xlevel", Property::Number(self.xlevel.into())),
            ("phys-bits", Property::Number(self.phys_bits.into())),
        ]);
        list
    }
}
