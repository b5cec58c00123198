//! The data of `query-command-line-options`.

use crate::keys::LISTED;
use crate::params::Kind;

/// An option with its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionInfo {
    pub option: &'static str,
    pub parameters: Vec<Parameter>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

/// Every option that has keys.
pub fn options() -> Vec<OptionInfo> {
    let info = |group: &&'static crate::Group| OptionInfo {
        option: group.name,
        parameters: group
            .keys
            .iter()
            .map(|k| Parameter { name: k.name, kind: k.kind, help: k.help })
            .collect(),
    };
    LISTED.iter().map(info).collect()
}
