use crate::{Call, Routes};
use base::Result;
use machine::Cause;
use machine::runstate::{Decision, Request, decide};
use schema::lifecycle::*;
use schema::machine::WatchdogAction;
use spec::machine::{PanicAction as Panic, WatchdogChoice};

pub fn route(routes: &mut Routes) {
    routes.add(quit);
    routes.add(stop);
    routes.add(cont);
    routes.add(system_reset);
    routes.add(system_powerdown);
    routes.add(system_wakeup);
    routes.add(query_status);
    routes.add(set_action);
    routes.add(watchdog_set_action);
}

async fn quit(call: Call, _: Quit) -> Result<()> {
    let machine = call.machine().clone();
    call.after_reply(move || machine.request_quit(Cause::HostQmpQuit));
    Ok(())
}

async fn stop(call: Call, _: Stop) -> Result<()> {
    call.machine().stop();
    Ok(())
}

async fn cont(call: Call, _: Cont) -> Result<()> {
    if decide(call.machine().run_state(), Request::Start) != Decision::ResetRequired {
        super::blockdev::graph(&call).check_keys()?;
    }
    call.machine().start()
}

async fn system_reset(call: Call, _: SystemReset) -> Result<()> {
    let machine = call.machine().clone();
    call.after_reply(move || machine.request_reset());
    Ok(())
}

async fn system_powerdown(call: Call, _: SystemPowerdown) -> Result<()> {
    let machine = call.machine().clone();
    call.after_reply(move || machine.request_powerdown());
    Ok(())
}

async fn system_wakeup(call: Call, _: SystemWakeup) -> Result<()> {
    let machine = call.machine().clone();
    call.after_reply(move || machine.request_wakeup());
    Ok(())
}

async fn query_status(call: Call, _: QueryStatus) -> Result<StatusInfo> {
    let status = wire_state(call.machine().run_state());
    Ok(StatusInfo { running: status == RunState::Running, singlestep: false, status })
}

fn wire_state(state: machine::RunState) -> RunState {
    use machine::RunState as From;
    match state {
        From::Debug => RunState::Debug,
        From::Inmigrate => RunState::Inmigrate,
        From::InternalError => RunState::InternalError,
        From::IoError => RunState::IoError,
        From::Paused => RunState::Paused,
        From::Postmigrate => RunState::Postmigrate,
        From::Prelaunch => RunState::Prelaunch,
        From::FinishMigrate => RunState::FinishMigrate,
        From::RestoreVm => RunState::RestoreVm,
        From::Running => RunState::Running,
        From::SaveVm => RunState::SaveVm,
        From::Shutdown => RunState::Shutdown,
        From::Suspended => RunState::Suspended,
        From::Watchdog => RunState::Watchdog,
        From::GuestPanicked => RunState::GuestPanicked,
    }
}

async fn set_action(call: Call, command: SetAction) -> Result<()> {
    call.machine().set_actions(|actions| {
        if let Some(reboot) = command.reboot {
            actions.reboot_shuts_down = reboot == RebootAction::Shutdown;
        }
        if let Some(shutdown) = command.shutdown {
            actions.shutdown_pauses = shutdown == ShutdownAction::Pause;
        }
        if let Some(panic) = command.panic {
            actions.panic = match panic {
                PanicAction::Pause => Panic::Pause,
                PanicAction::Shutdown => Panic::Shutdown,
                PanicAction::ExitFailure => Panic::ExitFailure,
                PanicAction::None => Panic::None,
            };
        }
        if let Some(watchdog) = command.watchdog {
            actions.watchdog = watchdog_choice(watchdog);
        }
    });
    Ok(())
}

async fn watchdog_set_action(call: Call, command: WatchdogSetAction) -> Result<()> {
    call.machine().set_actions(|actions| actions.watchdog = watchdog_choice(command.action));
    Ok(())
}

fn watchdog_choice(action: WatchdogAction) -> WatchdogChoice {
    match action {
        WatchdogAction::Reset => WatchdogChoice::Reset,
        WatchdogAction::Shutdown => WatchdogChoice::Shutdown,
        WatchdogAction::Poweroff => WatchdogChoice::Poweroff,
        WatchdogAction::Pause => WatchdogChoice::Pause,
        WatchdogAction::Debug => WatchdogChoice::Debug,
        WatchdogAction::None => WatchdogChoice::None,
        WatchdogAction::InjectNmi => WatchdogChoice::InjectNmi,
    }
}
