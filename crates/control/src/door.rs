use crate::{BoxFuture, Call, Events, Routes, World, route_all};
use base::{Mutex, Result};
use qapi::{Book, Command, Describe, Value};
use qmp::{Door, Monitor, Outcome};
use schema::migration::MigrationCapability;
use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

trace::points! {
    /// A QMP monitor calls a command.
    QMP_COMMAND = "monitor_qmp_cmd_in_band";
    /// The same, out of band.
    QMP_COMMAND_OOB = "monitor_qmp_cmd_out_of_band";
}

type CommandPoints = HashMap<&'static str, (&'static trace::Point, &'static trace::Point)>;

fn command_points(all: &trace::Points, routes: &Routes) -> CommandPoints {
    all.add(POINTS);
    all.add(crate::events::POINTS);
    all.add(block::protocols::curl::POINTS);
    let points = routes.listed().map(|entry| {
        let name = entry.info.name.replace('-', "_");
        let enter = all.make(format!("qmp_enter_{name}"));
        (entry.info.name, (enter, all.make(format!("qmp_exit_{name}"))))
    });
    points.collect()
}

/// Adds the control plane's trace points to a list (`-trace help`, `-trace PATTERN`).
pub fn declare_trace_points(all: &trace::Points) {
    let mut routes = Routes::new();
    route_all(&mut routes);
    command_points(all, &routes);
}

/// A line of the human monitor given through the debugger, which does not wait: a command
/// that takes its time goes on behind.
fn monitor_line(control: Control, line: &str) -> String {
    let Some(monitor) = control.world().human_monitor.clone() else {
        return "there is no human monitor\n".into();
    };
    let mut command = monitor(control, line.to_string(), 0);
    match command.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(text)) => text.replace('\r', ""),
        Poll::Ready(Err(failure)) => format!("{}\n", failure.text),
        Poll::Pending => {
            tokio::spawn(command);
            "the command goes on\n".into()
        }
    }
}

/// The control plane; clones are the same.
#[derive(Clone)]
pub struct Control(Arc<Inner>);

struct Inner {
    world: World,
    routes: Routes,
    events: Events,
    /// In-band commands of all monitors run one after the other.
    turn: tokio::sync::Mutex<()>,
    /// Connected monitors, human ones included.
    present: AtomicUsize,
    schema: OnceLock<Value>,
    commands: OnceLock<Value>,
    points: CommandPoints,
    debugger: Arc<gdb::Debugger>,
    /// Switched on for migrations to come.
    migration: Mutex<Vec<MigrationCapability>>,
}

impl Control {
    pub fn new(world: World) -> Control {
        let mut routes = Routes::new();
        route_all(&mut routes);
        let points = command_points(&world.trace, &routes);
        world.couple_block_layer();
        let events = Events::new(
            world.host.notices.clone(),
            world.machine.clone(),
            machine::block_clock(&world.host.clocks),
        );
        let debugger = gdb::Debugger::new(world.machine.clone());
        let listener = debugger.clone();
        events.listen(move |what: &dyn Any| {
            if let Some(notice) = what.downcast_ref::<machine::Notice>() {
                listener.notice(notice);
            }
        });
        let control = Control(Arc::new(Inner {
            world,
            routes,
            events,
            turn: tokio::sync::Mutex::new(()),
            present: AtomicUsize::new(0),
            schema: OnceLock::new(),
            commands: OnceLock::new(),
            points,
            debugger,
            migration: Mutex::default(),
        }));
        let weak = Arc::downgrade(&control.0);
        control.debugger().set_monitor(Arc::new(move |line| match weak.upgrade() {
            Some(inner) => monitor_line(Control(inner), line),
            None => String::new(),
        }));
        control
    }

    /// The place of the debugger (`-gdb`, `gdbserver`).
    pub fn debugger(&self) -> &Arc<gdb::Debugger> {
        &self.0.debugger
    }

    pub fn world(&self) -> &World {
        &self.0.world
    }

    pub fn events(&self) -> &Events {
        &self.0.events
    }

    pub fn routes(&self) -> &Routes {
        &self.0.routes
    }

    /// The typed door. Events that the command caused have been sent when this returns.
    pub async fn call<C: Command>(&self, command: C) -> Result<C::Reply> {
        let call = Call::new(self.clone(), None);
        let handler = self.0.routes.typed::<C>()?;
        let result = handler(call.clone(), command).await;
        self.0.events.pump();
        for after in call.take_after() {
            after();
        }
        result
    }

    /// Waits until all monitors' output has left, at most `limit`. The last thing before the
    /// character devices are closed.
    pub async fn drain(&self, limit: Duration) {
        let wait = async {
            while !self.events().flushed() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            self.world().host.chardevs.drain(limit).await;
        };
        let _ = tokio::time::timeout(limit, wait).await;
    }

    /// Makes the QMP monitor that writes to `outlet`, and takes it into the broadcast of
    /// events. The caller runs [`Monitor::run`].
    pub fn monitor(&self, outlet: Arc<dyn qmp::Outlet>, options: qmp::Options) -> Arc<Monitor> {
        let monitor = Monitor::new(Arc::new(self.clone()), outlet, options);
        self.0.events.join(&monitor);
        monitor
    }

    /// Tells that a monitor of any kind got a client, or lost it. When the last one leaves a
    /// running machine, descriptors in sets that nobody opened are closed.
    pub fn presence(&self, present: bool) {
        if present {
            self.0.present.fetch_add(1, Ordering::SeqCst);
        } else if self.0.present.fetch_sub(1, Ordering::SeqCst) == 1 && self.world().machine.is_running() {
            self.world().fdsets.forget_unused();
        }
    }

    pub(crate) fn migration_capabilities(&self) -> &Mutex<Vec<MigrationCapability>> {
        &self.0.migration
    }

    /// The answer to `query-qmp-schema`.
    pub(crate) fn schema(&self) -> Value {
        let make = || Book::schema_info(self.0.routes.listed(), schema::all_events());
        self.0.schema.get_or_init(make).clone()
    }

    /// The answer to `query-commands`.
    pub(crate) fn commands(&self) -> Value {
        let make = || self.0.routes.listed().map(|e| serde_json::json!({"name": e.info.name})).collect();
        self.0.commands.get_or_init(make).clone()
    }

    fn trace(&self, call: &qmp::Call) -> Option<&'static trace::Point> {
        let point = if call.oob { &QMP_COMMAND_OOB } else { &QMP_COMMAND };
        trace::trace!(point, "{}", call.command);
        let (enter, exit) = *self.0.points.get(call.command.as_str())?;
        if enter.is_on() {
            let arguments = Value::Object(call.arguments.clone());
            enter.emit(format_args!("{}", qmp::text::compact(&arguments)));
        }
        exit.is_on().then_some(exit)
    }
}

impl Door for Control {
    fn find(&self, command: &str) -> Option<qmp::Route> {
        let info = self.0.routes.find(command)?.info;
        Some(qmp::Route { allow_oob: info.allow_oob })
    }

    fn call(&self, request: qmp::Call) -> BoxFuture<Outcome> {
        let control = self.clone();
        Box::pin(async move {
            let exit = control.trace(&request);
            let call = Call::new(control.clone(), Some(request.monitor));
            let turn = if request.oob { None } else { Some(control.0.turn.lock().await) };
            let result = match control.0.routes.find(&request.command) {
                Some(route) => (route.json)(call.clone(), request.arguments).await,
                None => Err(base::fail!("The command {} has not been found", request.command)),
            };
            drop(turn);
            if let Some(exit) = exit {
                let told = result.as_ref().map_or_else(|failure| failure.text.clone(), qmp::text::compact);
                trace::trace!(exit, "{told}");
            }
            control.0.events.pump();
            Outcome { result, after: call.take_after() }
        })
    }

    fn version(&self) -> Value {
        self.world().identity.version().write()
    }

    fn presence(&self, _: &Arc<Monitor>, present: bool) {
        Control::presence(self, present);
    }
}
