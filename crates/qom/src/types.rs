use std::collections::BTreeMap;

/// A type: its parent, whether it is abstract, the interfaces it has itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeInfo {
    pub name: String,
    pub parent: Option<String>,
    pub is_abstract: bool,
    pub interfaces: Vec<String>,
}

/// The registry that `qom-list-types` reads.
#[derive(Clone, Debug, Default)]
pub struct Types(BTreeMap<String, TypeInfo>);

impl Types {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add(&mut self, name: &str, parent: Option<&str>, is_abstract: bool, interfaces: &[&str]) {
        let info = TypeInfo {
            name: name.to_string(),
            parent: parent.map(str::to_string),
            is_abstract,
            interfaces: interfaces.iter().map(|name| name.to_string()).collect(),
        };
        self.0.insert(name.to_string(), info);
    }

    pub fn get(&self, name: &str) -> Option<&TypeInfo> {
        self.0.get(name)
    }

    /// Whether `name` is `ancestor`, derives from it or implements it.
    pub fn is_a(&self, name: &str, ancestor: &str) -> bool {
        let mut at = self.0.get(name);
        // A registry with a cycle ends here as well.
        for _ in 0..self.0.len() {
            let Some(info) = at else { return false };
            if info.name == ancestor || info.interfaces.iter().any(|i| i == ancestor) {
                return true;
            }
            at = info.parent.as_deref().and_then(|parent| self.0.get(parent));
        }
        false
    }

    /// Types that implement `ancestor` (all without one), abstract ones only on request.
    pub fn list(&self, ancestor: Option<&str>, with_abstract: bool) -> Vec<&TypeInfo> {
        self.0
            .values()
            .filter(|info| with_abstract || !info.is_abstract)
            .filter(|info| ancestor.is_none_or(|ancestor| self.is_a(&info.name, ancestor)))
            .collect()
    }
}
