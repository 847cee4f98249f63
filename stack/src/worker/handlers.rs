//! Handlers that overrun their budget or panic: demotes them, counts, and warns.

use crate::Instant;
use crate::clock;
use crate::service::{Budget, Handler, News};
use crate::telemetry::{Counters, RateLimit};

/// Settles budgets.
pub(super) struct Handlers {
    warnings: RateLimit,
    panic_warnings: RateLimit,
}

/// Names the service of a handler.
#[derive(Debug, Clone, Copy)]
pub(super) struct Service {
    pub(super) protocol: &'static str,
    pub(super) port: u16,
}

impl Handlers {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            warnings: RateLimit::new(now),
            panic_warnings: RateLimit::new(now),
        }
    }

    /// Settles the budget of a handler that was called `calls` times in a frame that took `frame_nanos` and ended
    /// at `nanos` of the clock.
    #[inline]
    pub(super) fn settle<T: ?Sized>(
        &mut self,
        (service, handler, budget): (Service, &mut Handler<T>, &mut Budget),
        (frame_nanos, calls, nanos): (u64, u32, u64),
        counters: &Counters,
    ) {
        let Some(news) = budget.settle(frame_nanos, calls, nanos) else {
            return;
        };
        if news.demoted.is_some() {
            handler.demote();
        }
        let now = clock::instant(nanos);
        self.tell(service, budget, &news, handler.last_panic(), now, counters);
    }

    /// Notes a panic of a demoted handler, on a thread of the pool.
    #[cold]
    pub(super) fn panicked(
        &mut self,
        service: Service,
        message: &str,
        now: Instant,
        counters: &Counters,
    ) {
        counters.handler_panics.increment();
        self.warn_of_panic(service, message, now);
    }

    fn warn_of_panic(&mut self, Service { protocol, port }: Service, message: &str, now: Instant) {
        if self.panic_warnings.allows(now) {
            let cost = match protocol {
                "TCP" => "its connection is reset",
                _ => "its datagram is dropped",
            };
            log::warn!("{protocol} port {port}: its interruptlet panicked, {cost}: {message}");
        }
    }

    #[cold]
    #[inline(never)]
    fn tell(
        &mut self,
        service: Service,
        budget: &Budget,
        news: &News,
        last_panic: &str,
        now: Instant,
        counters: &Counters,
    ) {
        let Service { protocol, port } = service;
        counters.handlers_suspected.add(u64::from(news.suspected));
        counters.handler_overruns.add(news.overruns.into());
        counters.handler_preemptions.add(news.preemptions.into());
        counters.services_returned.add(u64::from(news.returned));
        if news.panics > 0 {
            counters.handler_panics.add(news.panics.into());
            self.warn_of_panic(service, last_panic, now);
        }
        if news.cleared {
            log::info!("{protocol} port {port}: its interruptlet is within its budget");
        }
        let Some(away) = news.demoted else {
            return;
        };
        counters.services_demoted.increment();
        if self.warnings.allows(now) {
            let reason = if news.too_many_panics {
                format!("panicked too often (at last: {last_panic})")
            } else {
                let limit = budget.limit().total_micros();
                format!(
                    "overran its budget of {limit} \u{b5}s too often (the last call {})",
                    news.last
                )
            };
            log::warn!(
                "{protocol} port {port}: its interruptlet {reason}; the slow path runs it for {} ms, then the core tries \
                 again",
                away.total_millis()
            );
        }
    }
}
