use super::*;
use serde_json::json;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

#[derive(Default)]
struct Wire {
    written: Mutex<Vec<u8>>,
    room: Mutex<Option<usize>>,
}

impl Outlet for Wire {
    fn write(&self, bytes: &[u8]) -> usize {
        let mut room = self.room.lock();
        let taken = room.unwrap_or(usize::MAX).min(bytes.len());
        if let Some(room) = room.as_mut() {
            *room -= taken;
        }
        self.written.lock().extend_from_slice(&bytes[..taken]);
        taken
    }
    fn accept_input(&self) {}
}

impl Wire {
    fn take(&self) -> Vec<Value> {
        let text = String::from_utf8(std::mem::take(&mut *self.written.lock())).unwrap();
        text.split_terminator("\r\n").map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[derive(Default)]
struct Commands {
    log: Mutex<Vec<String>>,
    release: Notify,
}

struct Shared(Arc<Commands>);

impl Door for Shared {
    fn find(&self, command: &str) -> Option<Route> {
        ["qmp_capabilities", "echo", "slow", "oob", "fail", "fd", "after", "big"]
            .contains(&command)
            .then_some(Route { allow_oob: command == "oob" })
    }
    fn call(&self, call: Call) -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
        let commands = self.0.clone();
        Box::pin(async move {
            let mut after: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
            let result = match call.command.as_str() {
                "qmp_capabilities" => {
                    call.monitor.negotiate(call.arguments.contains_key("enable")).map(|()| json!({}))
                }
                "slow" => {
                    commands.release.notified().await;
                    Ok(json!("slow"))
                }
                "fail" => Err(Failure::device_not_found("x")),
                "big" => Ok(json!("x".repeat(300_000))),
                "fd" => call.monitor.take_received().map(|fd| {
                    call.monitor.name_fd("it", fd);
                    json!({})
                }),
                "after" => {
                    let line = Line::new(json!({"event": "AFTER"}));
                    let monitor = call.monitor.clone();
                    call.monitor.event(&Line::new(json!({"event": "BEFORE"})));
                    after.push(Box::new(move || monitor.event(&line)));
                    Ok(json!({}))
                }
                _ => Ok(Value::Object(call.arguments)),
            };
            commands.log.lock().push(call.command);
            Outcome { result, after }
        })
    }
    fn version(&self) -> Value {
        json!({"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""})
    }
    fn presence(&self, _: &Arc<Monitor>, present: bool) {
        self.0.log.lock().push(format!("present {present}"));
    }
}

struct Rig {
    monitor: Arc<Monitor>,
    wire: Arc<Wire>,
    commands: Arc<Commands>,
}

fn rig(options: Options) -> Rig {
    let (wire, commands) = (Arc::new(Wire::default()), Arc::new(Commands::default()));
    let monitor = Monitor::new(Arc::new(Shared(commands.clone())), wire.clone(), options);
    tokio::spawn(monitor.clone().run());
    monitor.opened();
    Rig { monitor, wire, commands }
}

impl Rig {
    async fn settle(&self) {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    async fn say(&self, text: impl AsRef<[u8]>) -> Vec<Value> {
        self.monitor.receive(text.as_ref(), Vec::new());
        self.settle().await;
        self.wire.take()
    }

    async fn ready(self) -> Self {
        assert_eq!(self.say("{'execute':'qmp_capabilities'}").await.last(), Some(&json!({"return": {}})));
        self
    }
}

fn not_found(text: &str) -> Value {
    json!({"error": {"class": "CommandNotFound", "desc": text}})
}

#[tokio::test]
async fn greeting_and_negotiation() {
    let rig = rig(Options { oob: true, ..Options::default() });
    let version = json!({"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""});
    assert_eq!(rig.wire.take(), [json!({"QMP": {"version": version, "capabilities": ["oob"]}})]);
    rig.monitor.event(&Line::new(json!({"event": "EARLY"})));
    assert_eq!(
        rig.say("{'execute':'echo'}").await,
        [not_found("Expecting capabilities negotiation with 'qmp_capabilities' before command 'echo'")]
    );
    assert_eq!(rig.say("{'execute':'no'}").await, [not_found("The command no has not been found")]);
    let rig = rig.ready().await;
    let again = "Capabilities negotiation is already complete, command 'qmp_capabilities' ignored";
    assert_eq!(rig.say("{'execute':'qmp_capabilities'}").await, [not_found(again)]);
    rig.monitor.event(&Line::new(json!({"event": "LATE"})));
    assert_eq!(rig.wire.take(), [json!({"event": "LATE"})]);
}

#[tokio::test]
async fn out_of_band_only_where_offered() {
    let rig = rig(Options::default());
    rig.wire.take();
    let refused = rig.say("{'execute':'qmp_capabilities','arguments':{'enable':['oob']}}").await;
    assert_eq!(refused[0]["error"]["desc"], "Capability oob not available");
    let rig = rig.ready().await;
    let got = rig.say("{'exec-oob':'oob'}").await;
    assert_eq!(got[0]["error"]["desc"], "QMP input object member 'exec-oob' is unexpected");
}

#[tokio::test]
async fn out_of_band_overtakes() {
    let rig = rig(Options { oob: true, ..Options::default() });
    rig.say("{'execute':'qmp_capabilities','arguments':{'enable':['oob']}}").await;
    let first = rig.say("{'execute':'slow','id':1}{'execute':'echo','id':2}{'exec-oob':'oob','id':3}").await;
    assert_eq!(first, [json!({"return": {}, "id": 3})]);
    let got = rig.say("{'exec-oob':'echo','id':4}").await;
    assert_eq!(got[0]["error"]["desc"], "The command echo does not support OOB");
    rig.commands.release.notify_one();
    rig.settle().await;
    assert_eq!(rig.wire.take(), [json!({"return": "slow", "id": 1}), json!({"return": {}, "id": 2})]);
}

#[tokio::test]
async fn ids_of_every_type_come_back() {
    let rig = rig(Options::default()).ready().await;
    for id in ["null", "true", "-1", "1.5", "\"a\\u20ac\"", "[1, {}]", "{\"a\": {\"b\": null}}"] {
        let got = rig.say(format!("{{'execute':'echo','id':{id}}}")).await;
        assert_eq!(got[0]["id"], serde_json::from_str::<Value>(id).unwrap());
        assert!(got[0].as_object().unwrap().contains_key("id"));
        let got = rig.say(format!("{{'execute':'fail','id':{id}}}")).await;
        assert_eq!(got[0]["error"]["class"], "DeviceNotFound");
        assert!(got[0].as_object().unwrap().contains_key("id"));
    }
    assert_eq!(rig.say("{'execute':'echo'}").await, [json!({"return": {}})]);
    let got = rig.say("{'execute':1,'id':1}").await;
    assert!(got[0].get("id").is_none());
}

#[tokio::test]
async fn ten_thousand_pipelined() {
    let rig = rig(Options::default()).ready().await;
    let text: String = (0..10_000).map(|n| format!("{{'execute':'echo','id':{n}}}")).collect();
    let mut rest = text.as_bytes();
    let mut replies = Vec::new();
    while !rest.is_empty() || replies.len() < 10_000 {
        let now = rig.monitor.can_receive().min(rest.len());
        rig.monitor.receive(&rest[..now], Vec::new());
        rest = &rest[now..];
        tokio::task::yield_now().await;
        replies.extend(rig.wire.take());
    }
    assert!(replies.iter().enumerate().all(|(n, reply)| reply["id"] == n));
}

#[tokio::test]
async fn order_of_events_and_replies() {
    let rig = rig(Options::default()).ready().await;
    let got = rig.say("{'execute':'after'}").await;
    assert_eq!(got, [json!({"event": "BEFORE"}), json!({"return": {}}), json!({"event": "AFTER"})]);
}

#[tokio::test]
async fn a_slow_reader_costs_bounded_memory() {
    let rig = rig(Options::default()).ready().await;
    *rig.wire.room.lock() = Some(0);
    for _ in 0..100 {
        rig.say("{'execute':'big'}").await;
    }
    assert!(rig.monitor.outbox.len() < REPLY_ROOM + 400_000);
    let event = Line::new(json!({"event": "x".repeat(100_000)}));
    for _ in 0..1000 {
        rig.monitor.event(&event);
    }
    assert!(rig.monitor.outbox.len() < EVENT_ROOM + 200_000);
    while rig.monitor.can_receive() > 0 {
        rig.monitor.receive(&vec![b' '; rig.monitor.can_receive()], Vec::new());
    }
    *rig.wire.room.lock() = None;
    rig.monitor.writable();
    rig.settle().await;
    assert!(rig.monitor.is_flushed() && rig.monitor.can_receive() > 0);
}

#[tokio::test]
async fn a_new_client_starts_afresh() {
    let rig = rig(Options::default()).ready().await;
    rig.say("{'execute':'slow','id':1}{'execute':'echo','id':2}{\"half").await;
    rig.monitor.closed();
    rig.settle().await;
    rig.monitor.opened();
    rig.commands.release.notify_one();
    let got = rig.say("{'execute':'echo'}").await;
    assert!(got[0].get("QMP").is_some(), "the greeting comes first: {got:?}");
    assert_eq!(got.len(), 2, "{got:?}");
    assert_eq!(got[1]["error"]["class"], "CommandNotFound");
    let log = rig.commands.log.lock();
    let log: Vec<&str> = log.iter().map(String::as_str).collect();
    let want = ["present true", "qmp_capabilities", "present true", "slow", "echo", "present false"];
    assert_eq!(log, want);
}

#[tokio::test]
async fn after_the_end_of_input_requests_are_answered_and_events_told() {
    let rig = rig(Options::default());
    rig.wire.take();
    rig.monitor.receive(b"{'execute':'qmp_capabilities'}{'execute':'echo'}", Vec::new());
    rig.monitor.closed();
    rig.settle().await;
    assert_eq!(rig.wire.take(), [json!({"return": {}}), json!({"return": {}})]);
    let last = json!({"event": "SHUTDOWN"});
    rig.monitor.event(&Line::new(last.clone()));
    assert_eq!(rig.wire.take(), [last]);
}

#[tokio::test]
async fn descriptors_belong_to_their_message() {
    let rig = rig(Options::default()).ready().await;
    let (a, mut a2) = UnixStream::pair().unwrap();
    let (b, mut b2) = UnixStream::pair().unwrap();
    let (c, _c2) = UnixStream::pair().unwrap();
    a2.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    b2.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    rig.monitor.receive(b"{'execute':'fd'}", vec![a.into(), c.into()]);
    rig.monitor.receive(b"{'execute':'fd'}{'execute':'fd'}", vec![b.into()]);
    rig.settle().await;
    let got = rig.wire.take();
    assert_eq!(got[..2], [json!({"return": {}}), json!({"return": {}})]);
    assert_eq!(got[2]["error"]["desc"], "No file descriptor supplied via SCM_RIGHTS");
    assert_eq!(a2.read(&mut [0]).unwrap(), 0, "replaced, so closed");
    assert!(rig.monitor.take_named("it").is_some());
    assert_eq!(b2.read(&mut [0]).unwrap(), 0);
    assert!(rig.monitor.take_named("it").is_none());
}

#[tokio::test]
async fn errors_leave_the_session_usable() {
    let rig = rig(Options::default()).ready().await;
    for text in ["}", "[1,]", "\u{fffd}@#\n", "{'execute':}", "\"x\" "] {
        let got = rig.say(text).await;
        assert!(!got.is_empty(), "{text}");
        assert!(got.iter().all(|reply| reply["error"]["class"] == "GenericError"), "{text}");
        assert_eq!(rig.say("\n{'execute':'echo','id':7}").await, [json!({"return": {}, "id": 7})], "{text}");
    }
}

#[tokio::test]
async fn pretty_output() {
    let rig = rig(Options { pretty: true, ..Options::default() });
    let text = String::from_utf8(std::mem::take(&mut *rig.wire.written.lock())).unwrap();
    assert!(text.starts_with("{\r\n    \"QMP\": {\r\n        \"version\": {\r\n"), "{text}");
}
