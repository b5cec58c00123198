use super::*;
use base::{Class, Result};
use serde_json::{Value, json};
use std::sync::Arc;

struct Thing(i64);

impl Object for Thing {
    fn type_name(&self) -> String {
        "thing".into()
    }
    fn properties(&self) -> Vec<PropertyInfo> {
        vec![PropertyInfo::new("size", "int")]
    }
    fn get(&self, name: &str) -> Result<Value> {
        if name == "size" { Ok(json!(self.0)) } else { Err(Tree::no_property(name)) }
    }
}

#[test]
fn paths_absolute_partial_and_ambiguous() {
    let tree = Tree::new();
    tree.insert("/machine/peripheral/a", Arc::new(Thing(1)));
    tree.insert("/machine/unattached/device[0]/a", Arc::new(Thing(2)));
    tree.insert("/objects/b", Arc::new(Thing(3)));
    assert_eq!(tree.get("b", "size").unwrap(), json!(3));
    assert_eq!(tree.get("peripheral/a", "size").unwrap(), json!(1));
    assert!(tree.get("a", "size").unwrap_err().text.contains("uniquely"));
    assert_eq!(tree.get("/machine/x", "size").unwrap_err().class, Class::DeviceNotFound);
    assert_eq!(tree.get("/machine", "peripheral").unwrap(), json!("/machine/peripheral"));
    let names: Vec<_> = tree.list("/machine").unwrap().into_iter().map(|p| (p.name, p.kind)).collect();
    assert!(names.contains(&("peripheral".into(), "child<container>".into())));
    assert!(tree.set("b", "size", &json!(1)).unwrap_err().text.contains("permission"));
    tree.remove("/machine/peripheral");
    assert!(tree.get("/machine/peripheral/a", "size").is_err());
}

#[test]
fn types_inherit_and_implement() {
    let mut types = Types::new();
    types.add("object", None, true, &[]);
    types.add("device", Some("object"), true, &[]);
    types.add("rng", Some("device"), false, &["hotpluggable"]);
    assert!(types.is_a("rng", "object") && types.is_a("rng", "hotpluggable") && !types.is_a("device", "rng"));
    assert_eq!(types.list(Some("device"), false).len(), 1);
    assert_eq!(types.list(Some("device"), true).len(), 2);
}
