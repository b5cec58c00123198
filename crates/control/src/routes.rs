use crate::{BoxFuture, Call};
use base::{Failure, Result};
use qapi::{Command, Describe, Map, Value};
use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

type TypedHandler<C> = Arc<dyn Fn(Call, C) -> BoxFuture<Result<<C as Command>::Reply>> + Send + Sync>;
type JsonHandler = Box<dyn Fn(Call, Map) -> BoxFuture<Result<Value>> + Send + Sync>;

/// A command's handler, by both doors.
pub struct Route {
    pub info: qapi::CommandInfo,
    pub(crate) json: JsonHandler,
    /// A [`TypedHandler`] of the command.
    typed: Box<dyn Any + Send + Sync>,
}

/// The handlers by the names of their commands.
#[derive(Default)]
pub struct Routes(HashMap<&'static str, Route>);

impl Routes {
    pub fn new() -> Self {
        Self::default()
    }

    /// Routes the command that `handler` takes to it.
    pub fn add<C, F, R>(&mut self, handler: F)
    where
        C: Command,
        F: Fn(Call, C) -> R + Send + Sync + 'static,
        R: Future<Output = Result<C::Reply>> + Send + 'static,
    {
        let typed: TypedHandler<C> = Arc::new(move |call, command| Box::pin(handler(call, command)));
        let by_json = typed.clone();
        let json: JsonHandler = Box::new(move |call, map| match qapi::arguments::<C>(map) {
            Ok(command) => {
                let running = by_json(call, command);
                Box::pin(async move { Ok(running.await?.write()) })
            }
            Err(failure) => Box::pin(std::future::ready(Err(failure))),
        });
        let route = Route { info: C::INFO, json, typed: Box::new(typed) };
        let before = self.0.insert(C::INFO.name, route);
        debug_assert!(before.is_none(), "{} is routed twice", C::INFO.name);
    }

    pub fn find(&self, name: &str) -> Option<&Route> {
        self.0.get(name)
    }

    /// The handler of `C` as a typed function.
    pub(crate) fn typed<C: Command>(&self) -> Result<TypedHandler<C>> {
        let route = self.0.get(C::INFO.name);
        let typed = route.and_then(|route| route.typed.downcast_ref::<TypedHandler<C>>());
        typed.cloned().ok_or_else(|| {
            Failure::of(
                base::Class::CommandNotFound,
                format!("The command {} has not been found", C::INFO.name),
            )
        })
    }

    /// The declared commands that are routed, in declared order: what is listed.
    pub fn listed(&self) -> impl Iterator<Item = &'static qapi::CommandEntry> + Clone + '_ {
        schema::AREAS
            .iter()
            .flat_map(|area| area.commands)
            .filter(|entry| self.0.contains_key(entry.info.name))
    }

    /// The names of all routed commands.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.keys().copied()
    }
}
