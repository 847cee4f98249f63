//! Handlers that overrun their budget: demotes them, counts, and warns.

use crate::Instant;
use crate::clock;
use crate::service::{Budget, Handler, News};
use crate::telemetry::{Counters, RateLimit};

/// Settles budgets.
pub(super) struct Handlers {
    warnings: RateLimit,
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
        self.tell(service, budget, &news, clock::instant(nanos), counters);
    }

    #[cold]
    #[inline(never)]
    fn tell(
        &mut self,
        Service { protocol, port }: Service,
        budget: &Budget,
        news: &News,
        now: Instant,
        counters: &Counters,
    ) {
        counters.handlers_suspected.add(u64::from(news.suspected));
        counters.handler_overruns.add(news.overruns.into());
        counters.handler_preemptions.add(news.preemptions.into());
        counters.services_returned.add(u64::from(news.returned));
        if news.cleared {
            log::info!("{protocol} port {port}: its interruptlet is within its budget");
        }
        let Some(away) = news.demoted else {
            return;
        };
        counters.services_demoted.increment();
        if self.warnings.allows(now) {
            let limit = budget.limit().total_micros();
            log::warn!(
                "{protocol} port {port}: its interruptlet overran its budget of {limit} \u{b5}s too often (the last call {}); \
                 the slow path runs it for {} ms, then the core tries again",
                news.last,
                away.total_millis()
            );
        }
    }
}
