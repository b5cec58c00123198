use crate::{Event, FrontEnd};
use base::Mutex;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::Notify;

/// Where a back end and its front ends meet: who is attached, who has the input, whether the
/// back end is open.
pub(crate) struct Hub {
    slots: Mutex<Slots>,
    /// A front end can take input again, or another one got the focus.
    pub room: Notify,
    /// This is a multiplexer: front ends are told who has the input.
    mux: AtomicBool,
}

#[derive(Default)]
struct Slots {
    list: Vec<Slot>,
    /// Tag of the slot that gets the input.
    focus: Option<u32>,
    next_tag: u32,
    open: bool,
}

struct Slot {
    tag: u32,
    front: Option<Weak<dyn FrontEnd>>,
    front_open: bool,
    told_open: bool,
    /// What the front end was last told about the input of a multiplexer.
    told_focus: Option<bool>,
    blocked: bool,
}

impl Slots {
    /// The one with the input.
    fn focused(&self) -> Option<&Slot> {
        self.list.iter().find(|slot| Some(slot.tag) == self.focus)
    }
}

impl Slot {
    fn front(&self) -> Option<Arc<dyn FrontEnd>> {
        self.front.as_ref()?.upgrade()
    }
}

impl Hub {
    pub fn new() -> Arc<Self> {
        Arc::new(Hub { slots: Mutex::default(), room: Notify::new(), mux: AtomicBool::new(false) })
    }

    pub fn set_mux(&self) {
        self.mux.store(true, Ordering::Relaxed);
    }

    /// Reserves a slot, if fewer than `max` are taken.
    pub fn claim(&self, max: usize) -> Option<u32> {
        let mut slots = self.slots.lock();
        if slots.list.len() >= max {
            return None;
        }
        let tag = slots.next_tag;
        slots.next_tag += 1;
        slots.list.push(Slot {
            tag,
            front: None,
            front_open: false,
            told_open: false,
            told_focus: None,
            blocked: false,
        });
        Some(tag)
    }

    /// Frees a slot; the input goes to the last slot that is left.
    pub fn release(&self, tag: u32) {
        let mut slots = self.slots.lock();
        slots.list.retain(|s| s.tag != tag);
        if slots.focus == Some(tag) {
            slots.focus = slots.list.iter().rev().find(|s| s.front.is_some()).map(|s| s.tag);
        }
        drop(slots);
        self.room.notify_one();
    }

    /// Attaches the front end of a slot; with `take_focus` the input is its own from now on,
    /// which [`Hub::announce`] tells.
    pub fn connect(&self, tag: u32, front: Weak<dyn FrontEnd>, open: bool, take_focus: bool) {
        let mut slots = self.slots.lock();
        let Some(slot) = slots.list.iter_mut().find(|s| s.tag == tag) else { return };
        slot.front = Some(front);
        slot.front_open = open;
        slot.told_open = false;
        slot.told_focus = None;
        if take_focus || slots.focus.is_none() {
            slots.focus = Some(tag);
        }
    }

    pub fn set_front_open(&self, tag: u32, open: bool) {
        if let Some(slot) = self.slots.lock().list.iter_mut().find(|s| s.tag == tag) {
            slot.front_open = open;
        }
    }

    pub fn front_open(&self) -> bool {
        self.slots.lock().list.iter().any(|s| s.front_open)
    }

    pub fn is_claimed(&self) -> bool {
        !self.slots.lock().list.is_empty()
    }

    pub fn is_open(&self) -> bool {
        self.slots.lock().open
    }

    pub fn set_blocked(&self, tag: u32) {
        if let Some(slot) = self.slots.lock().list.iter_mut().find(|s| s.tag == tag) {
            slot.blocked = true;
        }
    }

    fn focused(&self) -> Option<Arc<dyn FrontEnd>> {
        self.slots.lock().focused()?.front()
    }

    pub fn focus(&self) -> Option<u32> {
        self.slots.lock().focus
    }

    /// Moves the input to `tag`, telling both sides.
    pub fn set_focus(&self, tag: u32) {
        self.slots.lock().focus = Some(tag);
        self.announce_focus();
        self.room.notify_one();
    }

    /// Tells the front ends of a multiplexer who lost the input and who has it.
    pub fn announce_focus(&self) {
        if !self.mux.load(Ordering::Relaxed) {
            return;
        }
        let mut news: Vec<(bool, Arc<dyn FrontEnd>)> = {
            let mut slots = self.slots.lock();
            let focus = slots.focus;
            let changed = slots.list.iter_mut().filter_map(|s| {
                let has = focus == Some(s.tag);
                let news = s.front.is_some() && s.told_focus != Some(has);
                s.told_focus = if s.front.is_some() { Some(has) } else { None };
                news.then(|| s.front()).flatten().map(|front| (has, front))
            });
            changed.collect()
        };
        news.sort_by_key(|(has, _)| *has);
        for (has, front) in news {
            front.event(if has { Event::MuxIn } else { Event::MuxOut });
        }
    }

    /// The attached slot after the one with the focus, going round.
    pub fn next_focus(&self) -> Option<u32> {
        let slots = self.slots.lock();
        let tags: Vec<u32> = slots.list.iter().filter(|s| s.front.is_some()).map(|s| s.tag).collect();
        let at = tags.iter().position(|&t| Some(t) == slots.focus);
        tags.get(at.map_or(0, |at| (at + 1) % tags.len())).copied()
    }

    /// How much the front end with the input can take. Before it is told that the back end is open
    /// it would not know whose input that is.
    pub fn can_receive(&self) -> usize {
        let front = {
            let slots = self.slots.lock();
            slots.focused().filter(|s| s.told_open || !slots.open).and_then(Slot::front)
        };
        front.map_or(0, |f| f.can_receive())
    }

    pub fn receive(&self, bytes: &[u8], fds: Vec<OwnedFd>) {
        if let Some(front) = self.focused() {
            front.receive(bytes, fds);
        }
    }

    /// Waits until the front end with the input has room, and says how much.
    pub async fn wait_room(&self) -> usize {
        loop {
            let room = self.can_receive();
            if room > 0 {
                return room;
            }
            self.room.notified().await;
        }
    }

    pub fn send_break(&self) {
        if let Some(front) = self.focused() {
            front.event(Event::Break);
        }
    }

    pub fn opened(&self) {
        self.slots.lock().open = true;
        self.announce();
    }

    /// Tells the front ends that do not know yet that the back end is open.
    pub fn announce(&self) {
        self.announce_focus();
        let fronts: Vec<_> = {
            let mut slots = self.slots.lock();
            if !slots.open {
                return;
            }
            let news = slots.list.iter_mut().filter(|s| s.front.is_some() && !s.told_open);
            news.filter_map(|s| {
                s.told_open = true;
                s.front()
            })
            .collect()
        };
        for front in fronts {
            front.event(Event::Opened);
        }
        self.room.notify_one();
    }

    pub fn closed(&self) {
        let fronts: Vec<_> = {
            let mut slots = self.slots.lock();
            slots.open = false;
            let told = slots.list.iter_mut().filter(|s| s.told_open);
            told.filter_map(|s| {
                s.told_open = false;
                s.front()
            })
            .collect()
        };
        for front in fronts {
            front.event(Event::Closed);
        }
    }

    /// Tells the front ends whose last write was cut short that there is room.
    pub fn writable(&self) {
        let fronts: Vec<_> = {
            let mut slots = self.slots.lock();
            let blocked = |s: &mut Slot| std::mem::take(&mut s.blocked).then(|| s.front()).flatten();
            slots.list.iter_mut().filter_map(blocked).collect()
        };
        for front in fronts {
            front.writable();
        }
    }
}
