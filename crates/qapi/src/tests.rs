use crate::{At, Book, Command, CommandEntry, Describe, Event, EventEntry, Map, Result, Value, arguments};
use serde_json::json;

/// Where data goes.
#[derive(Describe, Clone, Copy, Debug, PartialEq)]
enum Sink {
    Null,
    #[qapi(name = "TTY", features("unstable"))]
    Tty,
    VeryLongName,
}

#[derive(Describe, Debug, PartialEq, Clone)]
#[qapi(rename_all = "snake")]
struct Range {
    base_addr: u32,
    limit: Option<u8>,
}

#[derive(Describe, Debug, PartialEq, Clone)]
struct FileOptions {
    filename: String,
    locking: Option<bool>,
}

#[derive(Describe, Debug, PartialEq)]
struct FormatOptions {
    file: NodeRef,
    backing: Option<NodeOrNull>,
}

#[derive(Describe, Debug, PartialEq)]
#[qapi(tag = "driver", tag_name = "Driver")]
enum Driver {
    File(FileOptions),
    Qcow2(Box<FormatOptions>),
    NullCo,
}

/// A node.
#[derive(Describe, Debug, PartialEq)]
#[qapi(features("dynamic"))]
struct Node {
    node_name: Option<String>,
    #[qapi(default)]
    read_only: bool,
    #[qapi(flatten)]
    driver: Driver,
}

#[derive(Describe, Debug, PartialEq)]
#[qapi(alternate)]
enum NodeRef {
    Definition(Box<Node>),
    Reference(String),
}

#[derive(Describe, Debug, PartialEq)]
#[qapi(alternate)]
enum NodeOrNull {
    Reference(String),
    Null,
}

#[derive(Describe, Debug, PartialEq)]
#[qapi(tag = "type", data = "data")]
enum Backend {
    File(FileOptions),
    Pty,
}

/// Adds a node.
#[derive(Command, Debug, PartialEq)]
#[command(name = "node_add", reply = Range, oob, features("json-cli"))]
struct NodeAdd {
    #[qapi(flatten)]
    node: Node,
}

#[derive(Command, Debug, PartialEq)]
#[command(reply = Vec<Sink>)]
struct DoThings {
    /// the value
    val: i64,
    #[qapi(alias = "cpu")]
    cpu_index: Option<i64>,
    #[qapi(default = 7)]
    wide: u64,
    small: Option<u8>,
    rate: Option<f64>,
    sink: Option<Sink>,
    range: Option<Range>,
    ranges: Option<Vec<Range>>,
    what: Option<Value>,
    node: Option<NodeRef>,
    backend: Option<Backend>,
}

#[derive(Command, Debug, PartialEq)]
struct DeviceAdd {
    driver: String,
    #[qapi(rest)]
    properties: Map,
}

#[derive(Event, Debug, PartialEq)]
#[event(throttle("id"))]
struct PortChange {
    id: String,
    open: bool,
}

fn things(value: Value) -> Result<DoThings> {
    arguments(value.as_object().cloned().unwrap())
}

fn refusal(value: Value) -> String {
    things(value).unwrap_err().text
}

#[test]
fn arguments_are_read() {
    let got = things(json!({
        "cpu": 3, "val": -1, "small": 255, "rate": 1, "sink": "TTY", "range": {"base_addr": 4294967295u32},
        "ranges": [{"base_addr": 1, "limit": 0}], "what": null,
        "node": {"driver": "qcow2", "file": "x", "backing": null}, "backend": {"type": "pty", "data": {}}
    }))
    .unwrap();
    assert_eq!(
        (got.val, got.cpu_index, got.wide, got.small, got.rate),
        (-1, Some(3), 7, Some(255), Some(1.0))
    );
    assert_eq!(got.sink, Some(Sink::Tty));
    assert_eq!(got.what, Some(Value::Null));
    assert_eq!(got.backend, Some(Backend::Pty));
    let Some(NodeRef::Definition(node)) = got.node else { panic!() };
    let format = FormatOptions { file: NodeRef::Reference("x".into()), backing: Some(NodeOrNull::Null) };
    assert_eq!(node.driver, Driver::Qcow2(Box::new(format)));
    assert!(!node.read_only);
}

#[test]
fn errors_of_arguments_have_the_customary_texts() {
    for (input, text) in [
        (json!({}), "Parameter 'val' is missing"),
        (json!({"foo": 1}), "Parameter 'val' is missing"),
        (json!({"val": 1, "foo": 1}), "Invalid parameter 'foo'"),
        (json!({"val": 1, "cpu": 1, "cpu-index": 1}), "Invalid parameter 'cpu'"),
        (json!({"val": "1"}), "Invalid parameter type for 'val', expected: int"),
        (json!({"val": 1.0}), "Invalid parameter type for 'val', expected: int"),
        (json!({"val": null}), "Invalid parameter type for 'val', expected: int"),
        (json!({"val": 9223372036854775808u64}), "Invalid parameter type for 'val', expected: int"),
        (json!({"val": 1, "cpu": "a"}), "Invalid parameter type for 'cpu', expected: int"),
        (json!({"val": 1, "rate": "a"}), "Invalid parameter type for 'rate', expected: number"),
        (json!({"val": 1, "small": 256}), "Parameter 'small' expects uint8_t"),
        (json!({"val": 1, "wide": -1}), "Parameter 'wide' expects uint64_t"),
        (json!({"val": 1, "sink": 3}), "Invalid parameter type for 'sink', expected: string"),
        (json!({"val": 1, "sink": "tty"}), "Invalid parameter 'tty'"),
        (json!({"val": 1, "range": 3}), "Invalid parameter type for 'range', expected: QDict"),
        (json!({"val": 1, "ranges": 3}), "Invalid parameter type for 'ranges', expected: list"),
        (json!({"val": 1, "ranges": [3]}), "Invalid parameter type for 'null', expected: QDict"),
        (json!({"val": 1, "range": {}}), "Invalid parameter type for 'base_addr', expected: integer"),
        (json!({"val": 1, "range": {"base_addr": -1}}), "Parameter 'base_addr' expects uint32_t"),
        (json!({"val": 1, "range": {"base_addr": 1, "x": 1}}), "QMP input object member 'x' is unexpected"),
        (json!({"val": 1, "node": 1}), "Invalid parameter type for 'node', expected: NodeRef"),
        (json!({"val": 1, "node": {}}), "Invalid parameter type for 'driver', expected: string"),
        (json!({"val": 1, "node": {"driver": "no"}}), "Invalid parameter 'no'"),
        (json!({"val": 1, "node": {"driver": "qcow2"}}), "Parameter 'file' is missing"),
        (
            json!({"val": 1, "node": {"driver": "file", "filename": "x", "locking": 1}}),
            "Invalid parameter type for 'locking', expected: boolean",
        ),
        (
            json!({"val": 1, "node": {"driver": "null-co", "filename": "x"}}),
            "QMP input object member 'filename' is unexpected",
        ),
        (json!({"val": 1, "backend": {"type": "pty"}}), "Invalid parameter type for 'data', expected: QDict"),
    ] {
        assert_eq!(refusal(input.clone()), text, "{input}");
    }
}

#[test]
fn every_value_reads_back_as_written() {
    let map = json!({"node-name": "n", "read-only": true, "driver": "qcow2",
        "file": {"read-only": false, "driver": "file", "filename": "f"}, "backing": "b"});
    let add: NodeAdd = arguments(map.as_object().cloned().unwrap()).unwrap();
    assert_eq!(add.write().to_string(), map.to_string());
    let value = json!({"type": "file", "data": {"filename": "f", "locking": true}});
    let at = At { name: "x", top: false };
    assert_eq!(Backend::read(value.clone(), &at).unwrap().write(), value);
    for sink in Sink::ALL {
        assert_eq!(Sink::read(sink.write(), &at).unwrap(), *sink);
    }
    assert_eq!(Sink::VeryLongName.as_str(), "very-long-name");
}

#[test]
fn a_flattened_union_needs_its_tag() {
    let error = arguments::<NodeAdd>(Map::new()).unwrap_err();
    assert_eq!(error.text, "Parameter 'driver' is missing");
}

#[test]
fn rest_takes_all_other_keys() {
    let map = json!({"a": 1, "driver": "d", "b": {"c": []}});
    let add: DeviceAdd = arguments(map.as_object().cloned().unwrap()).unwrap();
    assert_eq!(Value::Object(add.properties).to_string(), r#"{"a":1,"b":{"c":[]}}"#);
}

#[test]
fn infos() {
    assert_eq!((NodeAdd::INFO.name, NodeAdd::INFO.allow_oob), ("node_add", true));
    assert_eq!((DoThings::INFO.name, DoThings::INFO.allow_oob), ("do-things", false));
    assert_eq!(PortChange::INFO.name, "PORT_CHANGE");
    assert_eq!(PortChange::INFO.throttle, Some(&["id"][..]));
    assert_eq!(NodeAdd::INFO.doc, "Adds a node.");
}

/// Follows the type called `name` in the answer.
fn find<'a>(info: &'a Value, name: &str) -> &'a Value {
    info.as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap_or_else(|| panic!("{name}"))
}

fn member<'a>(object: &'a Value, name: &str) -> &'a Value {
    object["members"].as_array().unwrap().iter().find(|member| member["name"] == name).unwrap()
}

#[test]
fn schema_info_can_be_followed() {
    let commands = [CommandEntry::of::<NodeAdd>(), CommandEntry::of::<DoThings>()];
    let events = [EventEntry::of::<PortChange>()];
    let info = Book::schema_info(commands.iter(), events.iter());
    let command = find(&info, "node_add");
    assert_eq!(command["allow-oob"], true);
    assert_eq!(command["features"], json!(["json-cli"]));
    let object = find(&info, command["arg-type"].as_str().unwrap());
    assert_eq!(object["tag"], "driver");
    assert_eq!(member(object, "node-name")["default"], Value::Null);
    assert!(member(object, "node-name").get("default").is_some());
    assert!(member(object, "driver").get("default").is_none());
    let tags = find(&info, member(object, "driver")["type"].as_str().unwrap());
    assert_eq!(tags["values"], json!(["file", "qcow2", "null-co"]));
    let variant = object["variants"].as_array().unwrap().iter().find(|v| v["case"] == "qcow2").unwrap();
    let format = find(&info, variant["type"].as_str().unwrap());
    let alternate = find(&info, member(format, "file")["type"].as_str().unwrap());
    assert_eq!(alternate["meta-type"], "alternate");
    assert_eq!(alternate["members"].as_array().unwrap().len(), 2);
    let things = find(&info, find(&info, "do-things")["arg-type"].as_str().unwrap());
    assert!(
        find(&info, member(things, "ranges")["type"].as_str().unwrap())["name"]
            .as_str()
            .unwrap()
            .starts_with('[')
    );
    let sink = find(&info, member(things, "sink")["type"].as_str().unwrap());
    assert_eq!(sink["members"][1], json!({"name": "TTY", "features": ["unstable"]}));
    let backend = find(&info, member(things, "backend")["type"].as_str().unwrap());
    let wrapper = find(&info, backend["variants"][0]["type"].as_str().unwrap());
    assert_eq!(wrapper["members"][0]["name"], "data");
    assert_eq!(find(&info, "PORT_CHANGE")["meta-type"], "event");
    assert_eq!(find(&info, "str")["json-type"], "string");
    let mut names: Vec<_> = info.as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
    names.sort();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "names are unique");
}
