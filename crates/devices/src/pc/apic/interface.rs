//! The register interface: xAPIC page and x2APIC MSRs.

use super::bus::{DeliveryMode, Interrupt};
use super::local::Lapic;
use super::register::*;
use std::fmt::Write;
use std::sync::atomic::Ordering;

impl Lapic {
    /// A register common to both interfaces; `None`: reserved.
    fn register(&self, number: u32) -> Option<u32> {
        let x2apic = self.is_x2apic();
        Some(match number {
            ID if x2apic => self.config.id,
            ID => self.xapic_id.load(Ordering::Acquire) << 24,
            VERSION => VERSION_VALUE,
            TPR => self.tpr.load(Ordering::Acquire),
            APR if !x2apic => 0,
            PPR => self.processor_priority().into(),
            LDR => self.logical_id(),
            DFR if !x2apic => self.dfr.load(Ordering::Acquire),
            SVR => self.svr.load(Ordering::Acquire),
            ISR..TMR => self.isr.word((number - ISR) as u8),
            TMR..IRR => self.tmr.word((number - TMR) as u8),
            IRR..ESR => self.irr.word((number - IRR) as u8),
            ESR => self.esr.load(Ordering::Acquire),
            ICR_LOW => self.icr.load(Ordering::Acquire) as u32,
            ICR_HIGH if !x2apic => (self.icr.load(Ordering::Acquire) >> 32) as u32,
            LVT_TIMER..=LVT_ERROR => self.lvt((number - LVT_TIMER) as usize),
            TIMER_INITIAL => self.timer.initial(),
            TIMER_CURRENT => self.timer.current(self.lvt(lvt::TIMER)),
            TIMER_DIVIDE => self.timer.divide(),
            EOI if !x2apic => 0,
            _ => return None,
        })
    }

    /// Writes a register common to both interfaces; `None`: reserved or read-only.
    fn set_register(&self, number: u32, value: u32) -> Option<()> {
        match number {
            TPR => {
                self.tpr.store(value & 0xff, Ordering::Release);
                self.recheck();
            }
            EOI => self.end_of_interrupt(),
            SVR => {
                self.svr.store(value & 0x3ff, Ordering::Release);
                if value & SVR_ENABLE == 0 {
                    for index in 0..lvt::COUNT {
                        self.set_lvt(index, self.lvt(index));
                    }
                }
            }
            ESR => self.esr.store(self.errors.swap(0, Ordering::SeqCst), Ordering::Release),
            LVT_TIMER..=LVT_ERROR => self.set_lvt((number - LVT_TIMER) as usize, value),
            TIMER_INITIAL => self.timer.set_initial(self.lvt(lvt::TIMER), value),
            TIMER_DIVIDE => self.timer.set_divide(self.lvt(lvt::TIMER), value),
            _ => return None,
        }
        Some(())
    }

    fn set_lvt(&self, index: usize, value: u32) {
        let old = self.lvt(index);
        let mut new = value & lvt::WRITABLE[index] | old & lvt::REMOTE_IRR;
        if self.svr.load(Ordering::Acquire) & SVR_ENABLE == 0 {
            new |= lvt::MASKED;
        }
        if new & lvt::LEVEL == 0 {
            new &= !lvt::REMOTE_IRR;
        }
        self.lvt[index].store(new, Ordering::SeqCst);
        if index == lvt::TIMER {
            self.timer.lvt_changed(old, new);
        } else {
            self.lvt_changed(index);
        }
    }

    /// Sends what the interrupt command register says.
    fn send(&self, icr: u64) {
        let low = icr as u32;
        let (Some(mode), Some(bus)) = (DeliveryMode::from_bits(low >> 8), self.bus.upgrade()) else {
            return;
        };
        let vector = low as u8;
        if vector < 16 && matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority) {
            self.error(esr::SEND_ILLEGAL_VECTOR);
            return;
        }
        let (assert, level) = (low & 1 << 14 != 0, low & 1 << 15 != 0);
        if mode == DeliveryMode::Init && level && !assert {
            return;
        }
        let high = (icr >> 32) as u32;
        let logical = low & 1 << 11 != 0;
        let interrupt = if self.is_x2apic() {
            Interrupt { mode, vector, level: false, destination: high, logical }
        } else {
            Interrupt::from_narrow(mode, vector, false, (high >> 24) as u8, logical)
        };
        match low >> 18 & 3 {
            0 => {
                bus.deliver(interrupt);
            }
            1 if mode == DeliveryMode::Fixed => {
                self.accept(interrupt);
            }
            1 => {}
            2 => bus.deliver_to_others(interrupt, None),
            _ => bus.deliver_to_others(interrupt, Some(self.config.id)),
        }
    }

    pub(super) fn mmio(&self, offset: u64, size: u8) -> u64 {
        let within = offset & 0xf;
        if within >= 4 || offset > 0xfff {
            return 0;
        }
        let value = match self.register(offset as u32 >> 4) {
            Some(value) => value,
            None => {
                self.error(esr::ILLEGAL_REGISTER);
                0
            }
        };
        let mask = if size >= 8 { u64::MAX } else { (1 << (size * 8)) - 1 };
        u64::from(value) >> (within * 8) & mask
    }

    pub(super) fn set_mmio(&self, offset: u64, size: u8, value: u64) {
        // Registers take aligned doublewords (SDM vol. 3A §11.4.1).
        if size < 4 || offset & 0xf != 0 || offset > 0xfff {
            return;
        }
        let value = value as u32;
        match offset as u32 >> 4 {
            ID => self.xapic_id.store(value >> 24, Ordering::Release),
            LDR => self.ldr.store(value & 0xff00_0000, Ordering::Release),
            DFR => self.dfr.store(value | 0x0fff_ffff, Ordering::Release),
            ICR_LOW => {
                let icr =
                    self.icr.load(Ordering::Acquire) & !0xffff_ffff | u64::from(value & 0xccfff & !0x1000);
                self.icr.store(icr, Ordering::Release);
                self.send(icr);
            }
            ICR_HIGH => {
                let icr =
                    self.icr.load(Ordering::Acquire) & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
                self.icr.store(icr, Ordering::Release);
            }
            number => {
                if self.set_register(number, value).is_none() {
                    self.error(esr::ILLEGAL_REGISTER);
                }
            }
        }
    }

    pub(super) fn msr(&self, index: u32) -> Option<u64> {
        match index {
            MSR_APIC_BASE => Some(self.base.load(Ordering::Acquire)),
            MSR_TSC_DEADLINE => Some(self.timer.deadline(self.lvt(lvt::TIMER))),
            MSR_X2APIC..0x900 if self.is_x2apic() => match index - MSR_X2APIC {
                ICR_LOW => Some(self.icr.load(Ordering::Acquire)),
                number => self.register(number).map(u64::from),
            },
            _ => None,
        }
    }

    pub(super) fn set_msr(&self, index: u32, value: u64) -> Option<()> {
        match index {
            MSR_APIC_BASE => self.set_base(value),
            MSR_TSC_DEADLINE => {
                self.timer.set_deadline(self.lvt(lvt::TIMER), value);
                Some(())
            }
            MSR_X2APIC..0x900 if self.is_x2apic() => self.set_x2apic(index - MSR_X2APIC, value),
            _ => None,
        }
    }

    fn set_x2apic(&self, number: u32, value: u64) -> Option<()> {
        if number == ICR_LOW {
            if value & 0xfff3_2000 != 0 {
                return None;
            }
            let icr = value & !0x1000;
            self.icr.store(icr, Ordering::Release);
            self.send(icr);
            return Some(());
        }
        let low = u32::try_from(value).ok()?;
        let allowed = match number {
            TPR | SELF_IPI => 0xff,
            EOI | ESR => 0,
            SVR => 0x3ff,
            LVT_TIMER..=LVT_ERROR => lvt::WRITABLE[(number - LVT_TIMER) as usize] | 0x5000,
            TIMER_DIVIDE => 0xb,
            _ => u32::MAX,
        };
        if low & !allowed != 0 {
            return None;
        }
        if number == SELF_IPI {
            if low < 16 {
                self.error(esr::SEND_ILLEGAL_VECTOR);
            } else {
                self.request(low as u8, false);
            }
            return Some(());
        }
        self.set_register(number, low)
    }

    /// IA32_APIC_BASE with its legal mode changes (SDM vol. 3A §11.12.5).
    fn set_base(&self, value: u64) -> Option<()> {
        const RESERVED: u64 = 0xfff0_0000_0000_02ff;
        let old = self.base.load(Ordering::Acquire);
        let mode = |base: u64| (base & apic_base::ENABLE != 0, base & apic_base::X2APIC != 0);
        let legal = match (mode(old), mode(value)) {
            (_, (false, true)) | ((true, true), (true, false)) | ((false, _), (true, true)) => false,
            (_, (true, true)) => self.config.x2apic,
            _ => true,
        };
        if !legal || value & RESERVED != 0 {
            return None;
        }
        let bootstrap = old & apic_base::BOOTSTRAP;
        self.base.store(value & !apic_base::BOOTSTRAP | bootstrap, Ordering::SeqCst);
        if mode(value) == (false, false) && mode(old).0 {
            self.init();
        }
        self.recheck();
        Some(())
    }

    pub(super) fn describe(&self) -> String {
        let mut text = format!("dumping local APIC state for CPU {}\n\n", self.config.id);
        for (index, name) in ["LVTT", "LVTTHMR", "LVTPC", "LVT0", "LVT1", "LVTERR"].into_iter().enumerate() {
            let entry = self.lvt(index);
            let masked = if entry & lvt::MASKED != 0 { " masked" } else { "" };
            let trigger = if entry & lvt::LEVEL != 0 { "level" } else { "edge" };
            let mode = DeliveryMode::from_bits(entry >> 8);
            let mode = mode.map_or("reserved".to_string(), |mode| format!("{mode:?}"));
            let _ = writeln!(text, "{name:8} 0x{entry:08x} {trigger}{masked} {mode} (vec {})", entry & 0xff);
        }
        let _ = writeln!(
            text,
            "Timer\t DCR=0x{:x} initial_count = {} current_count = {}",
            self.timer.divide(),
            self.timer.initial(),
            self.timer.current(self.lvt(lvt::TIMER))
        );
        let _ = writeln!(text, "SPIV\t 0x{:08x}", self.svr.load(Ordering::Acquire));
        let _ = writeln!(text, "ICR\t 0x{:016x}", self.icr.load(Ordering::Acquire));
        let _ = writeln!(text, "ESR\t 0x{:08x}", self.esr.load(Ordering::Acquire));
        for (name, vectors) in [("ISR", &self.isr), ("IRR", &self.irr)] {
            let set: Vec<_> = (0..=255u8)
                .filter(|vector| vectors.word(vector >> 5) & 1 << (vector & 31) != 0)
                .map(|vector| vector.to_string())
                .collect();
            let list = if set.is_empty() { "(none)".to_string() } else { set.join(" ") };
            let _ = writeln!(text, "{name}\t {list}");
        }
        let _ = writeln!(
            text,
            "TPR 0x{:02x} PPR 0x{:02x} LDR 0x{:08x} DFR 0x{:08x} APICBASE 0x{:x}",
            self.tpr.load(Ordering::Acquire),
            self.processor_priority(),
            self.logical_id(),
            self.dfr.load(Ordering::Acquire),
            self.base.load(Ordering::Acquire)
        );
        text
    }
}
