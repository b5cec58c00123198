use crate::Session;
use crate::parse::Args;
use base::Result;
use qapi::Command;
use schema::lifecycle::{Cont, Quit, Stop, SystemPowerdown, SystemReset, SystemWakeup};
use schema::machine::InjectNmi;

async fn silent<C: Command>(session: Session, command: C) -> Result<String> {
    session.control.call(command).await.map(|_| String::new())
}

pub async fn quit(session: Session, _: Args) -> Result<String> {
    silent(session, Quit {}).await
}

pub async fn stop(session: Session, _: Args) -> Result<String> {
    silent(session, Stop {}).await
}

pub async fn cont(session: Session, _: Args) -> Result<String> {
    silent(session, Cont {}).await
}

pub async fn reset(session: Session, _: Args) -> Result<String> {
    silent(session, SystemReset {}).await
}

pub async fn powerdown(session: Session, _: Args) -> Result<String> {
    silent(session, SystemPowerdown {}).await
}

pub async fn wakeup(session: Session, _: Args) -> Result<String> {
    silent(session, SystemWakeup {}).await
}

pub async fn nmi(session: Session, _: Args) -> Result<String> {
    silent(session, InjectNmi {}).await
}
