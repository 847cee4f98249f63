//! What a run is told as: text for people, JSON for programs.

use std::fmt;

use hdrhistogram::Histogram;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::course::Finished;
use super::plan::Plan;
use super::proc::Usage;
use super::record::{ErrorKind, Errors};
use super::schedule::SECOND;

/// Points of the latencies' distribution per halving of the distance to the slowest.
const CDF_TICKS: u32 = 8;

/// The result of a run. Rates and times are of the measured interval.
#[derive(Debug, Serialize)]
pub struct Report {
    target: String,
    mode: &'static str,
    xdp: &'static str,
    parameters: Parameters,
    seconds: f64,
    connections: Connections,
    requests: u64,
    requests_per_second: Option<f64>,
    bytes_received: u64,
    bytes_per_second: Option<f64>,
    bytes_sent: u64,
    bytes_sent_per_second: Option<f64>,
    offered_per_second: Option<f64>,
    unfinished: u64,
    latency_us: Latency,
    #[serde(serialize_with = "by_name")]
    errors: Errors,
    errors_total: u64,
    server: Option<Server>,
    generator: Generator,
    series: Option<Series>,
}

/// How many requests were answered by when, from the start of the run on.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Series {
    /// The start, in seconds since 1970.
    pub began_at: f64,
    /// Seconds since then, and requests answered by then.
    pub points: Vec<(f64, u64)>,
}

/// How the stack was attached and driven, for the report.
#[derive(Debug, Clone, Copy)]
pub struct Attachment {
    /// Whether frames are not copied.
    pub is_zero_copy: bool,
    /// Whether the driver runs the XDP program.
    pub is_native: bool,
    /// What the core does when idle.
    pub poll: &'static str,
    /// The core.
    pub core: usize,
}

/// What processes cost in the measured interval.
#[derive(Debug, Clone, Default)]
pub struct Cost {
    /// The processes.
    pub pids: Vec<u32>,
    /// Of all of them together, at the beginning.
    pub begin: Usage,
    /// At the end.
    pub end: Usage,
    /// The most that was seen resident, in bytes.
    pub resident_bytes_max: u64,
}

#[derive(Debug, Serialize)]
struct Parameters {
    connections: u32,
    idle: u32,
    depth: u32,
    rate: Option<f64>,
    size: Option<u32>,
    slow: Option<u64>,
    sources: String,
    duration_s: f64,
    warmup_s: f64,
    timeout_s: f64,
    open_rate: f64,
    poll: &'static str,
    core: usize,
    seed: u64,
}

#[derive(Debug, Serialize)]
struct Connections {
    opened: u64,
    established: u64,
    open_at_end: u64,
}

#[derive(Debug, Default, Serialize)]
struct Latency {
    mean: Option<f64>,
    p50: Option<f64>,
    p90: Option<f64>,
    p99: Option<f64>,
    p99_9: Option<f64>,
    p99_99: Option<f64>,
    max: Option<f64>,
    cdf: Vec<(f64, f64)>,
}

#[derive(Debug, Serialize)]
struct Server {
    pids: Vec<u32>,
    cpu_s: f64,
    cpu_us_per_request: Option<f64>,
    voluntary_switches: u64,
    involuntary_switches: u64,
    switches_per_request: Option<f64>,
    resident_bytes_begin: u64,
    resident_bytes_end: u64,
    resident_bytes_max: u64,
}

#[derive(Debug, Serialize)]
struct Generator {
    cpu_s: f64,
    cpu_us_per_request: Option<f64>,
    lost_frames: u64,
}

impl Report {
    /// Puts the result together. `server` is there if its processes were given; `lost_frames` are those of
    /// the whole run that came faster than we took them.
    pub fn new(
        plan: &Plan,
        attachment: Attachment,
        finished: &Finished,
        server: Option<&Cost>,
        generator: &Cost,
        lost_frames: u64,
    ) -> Self {
        let record = &finished.record;
        let seconds = record.seconds();
        let per_second = |count: u64| (seconds > 0.0).then(|| count as f64 / seconds);
        let per_request =
            |amount: f64| (record.requests > 0).then(|| amount / record.requests as f64);
        Self {
            target: plan.target.to_string(),
            mode: if attachment.is_zero_copy {
                "zero-copy"
            } else {
                "copy"
            },
            xdp: if attachment.is_native {
                "native"
            } else {
                "generic"
            },
            parameters: Parameters {
                connections: plan.connections,
                idle: plan.idle,
                depth: plan.depth,
                rate: plan.rate,
                size: (!plan.target.protocol.is_http()).then_some(plan.size),
                slow: plan.slow,
                sources: plan.sources.to_string(),
                duration_s: in_seconds(plan.duration),
                warmup_s: in_seconds(plan.warmup),
                timeout_s: in_seconds(plan.timeout),
                open_rate: plan.open_rate,
                poll: attachment.poll,
                core: attachment.core,
                seed: plan.seed,
            },
            seconds,
            connections: Connections {
                opened: record.opened,
                established: record.established,
                open_at_end: finished.open_at_end,
            },
            requests: record.requests,
            requests_per_second: per_second(record.requests),
            bytes_received: record.bytes_received,
            bytes_per_second: per_second(record.bytes_received),
            bytes_sent: record.bytes_sent,
            bytes_sent_per_second: per_second(record.bytes_sent),
            offered_per_second: plan.rate,
            unfinished: record.unfinished,
            latency_us: Latency::of(&record.latencies),
            errors: record.errors,
            errors_total: record.errors.total(),
            server: server.map(|cost| {
                let switches = cost.voluntary_switches() + cost.involuntary_switches();
                Server {
                    pids: cost.pids.clone(),
                    cpu_s: cost.cpu_seconds(),
                    cpu_us_per_request: per_request(cost.cpu_seconds() * 1e6),
                    voluntary_switches: cost.voluntary_switches(),
                    involuntary_switches: cost.involuntary_switches(),
                    switches_per_request: per_request(switches as f64),
                    resident_bytes_begin: cost.begin.resident_bytes,
                    resident_bytes_end: cost.end.resident_bytes,
                    resident_bytes_max: cost.resident_bytes_max,
                }
            }),
            generator: Generator {
                cpu_s: generator.cpu_seconds(),
                cpu_us_per_request: per_request(generator.cpu_seconds() * 1e6),
                lost_frames,
            },
            series: None,
        }
    }

    /// Adds what was answered by when.
    pub fn with_series(self, series: Option<Series>) -> Self {
        Self { series, ..self }
    }

    /// As one line of JSON.
    pub fn json(&self) -> String {
        // Nothing in it can fail to be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Cost {
    fn cpu_seconds(&self) -> f64 {
        in_seconds(self.end.cpu_nanos.saturating_sub(self.begin.cpu_nanos))
    }

    // Threads that have ended take their switches with them.
    fn voluntary_switches(&self) -> u64 {
        let (begin, end) = (&self.begin, &self.end);
        end.voluntary_switches
            .saturating_sub(begin.voluntary_switches)
    }

    fn involuntary_switches(&self) -> u64 {
        let (begin, end) = (&self.begin, &self.end);
        end.involuntary_switches
            .saturating_sub(begin.involuntary_switches)
    }
}

impl Latency {
    fn of(nanos: &Histogram<u64>) -> Self {
        if nanos.is_empty() {
            return Self::default();
        }
        let micros = |nanos: u64| nanos as f64 / 1e3;
        let at = |quantile| Some(micros(nanos.value_at_quantile(quantile)));
        Self {
            mean: Some(nanos.mean() / 1e3),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: Some(micros(nanos.max())),
            cdf: nanos
                .iter_quantiles(CDF_TICKS)
                .map(|step| (micros(step.value_iterated_to()), step.quantile()))
                .collect(),
        }
    }
}

fn in_seconds(nanos: u64) -> f64 {
    nanos as f64 / SECOND as f64
}

fn by_name<S: Serializer>(errors: &Errors, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(ErrorKind::ALL.len()))?;
    for kind in ErrorKind::ALL {
        map.serialize_entry(kind.name(), &errors.of(kind))?;
    }
    map.end()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parameters = &self.parameters;
        write!(
            f,
            "{} from {}, XDP {}, {}; {} connections",
            self.target, parameters.sources, self.xdp, self.mode, parameters.connections
        )?;
        if parameters.idle > 0 {
            write!(f, " and {} idle ones", parameters.idle)?;
        }
        if parameters.depth > 1 {
            write!(f, ", {} requests on each", parameters.depth)?;
        }
        if let Some(slow) = parameters.slow {
            write!(f, ", each reading {slow} bytes/s")?;
        }
        if let Some(rate) = parameters.rate {
            write!(f, ", open loop of {rate} requests/s")?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "requests     {} in {:.2} s: {:.0}/s, {:.3} MB/s received",
            self.requests,
            self.seconds,
            self.requests_per_second.unwrap_or(0.0),
            self.bytes_per_second.unwrap_or(0.0) / 1e6
        )?;
        if self.bytes_sent > 0 {
            let rate = self.bytes_sent_per_second.unwrap_or(0.0);
            writeln!(f, "uploads      {:.3} MB/s sent", rate / 1e6)?;
        }
        let latency = &self.latency_us;
        write!(f, "latency, µs ")?;
        for (name, value) in [
            ("mean", latency.mean),
            ("p50", latency.p50),
            ("p90", latency.p90),
            ("p99", latency.p99),
            ("p99.9", latency.p99_9),
            ("p99.99", latency.p99_99),
            ("max", latency.max),
        ] {
            match value {
                Some(value) => write!(f, " {name} {value:.1}")?,
                None => write!(f, " {name} -")?,
            }
        }
        writeln!(f)?;
        let Connections {
            opened,
            established,
            open_at_end,
        } = self.connections;
        writeln!(
            f,
            "connections  {opened} opened, {established} established, {open_at_end} open at the end"
        )?;
        match self.errors.listed() {
            none if none.is_empty() => writeln!(f, "errors       none")?,
            listed => writeln!(f, "errors       {listed}")?,
        }
        if self.unfinished > 0 {
            writeln!(f, "unfinished   {} answers at the end", self.unfinished)?;
        }
        if let Some(server) = &self.server {
            writeln!(
                f,
                "server       {:.2} s of processor time{}; {} voluntary and {} involuntary context switches; \
                 {:.1} MB resident, at most {:.1}",
                server.cpu_s,
                PerRequest(server.cpu_us_per_request),
                server.voluntary_switches,
                server.involuntary_switches,
                server.resident_bytes_end as f64 / 1e6,
                server.resident_bytes_max as f64 / 1e6
            )?;
        }
        writeln!(
            f,
            "generator    {:.2} s of processor time{}",
            self.generator.cpu_s,
            PerRequest(self.generator.cpu_us_per_request)
        )?;
        if self.generator.lost_frames > 0 {
            let lost = self.generator.lost_frames;
            writeln!(
                f,
                "             {lost} frames came faster than it took them"
            )?;
        }
        Ok(())
    }
}

struct PerRequest(Option<f64>);

impl fmt::Display for PerRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(micros) => write!(f, ", {micros:.2} µs per request"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::record::Record;

    fn plan() -> Plan {
        Plan {
            target: "tcp-echo://10.0.0.2:7".parse().unwrap(),
            connections: 64,
            idle: 0,
            depth: 1,
            size: 64,
            open_rate: 20_000.0,
            rate: None,
            duration: 10 * SECOND,
            warmup: SECOND,
            timeout: 5 * SECOND,
            slow: None,
            sources: "10.9.1.0/24".parse().unwrap(),
            seed: 1,
            body: None,
        }
    }

    fn report(with_server: bool) -> Report {
        let mut record = Record::new().unwrap();
        record.measure(0, 2 * SECOND);
        for n in 1..=1000 {
            record.answer(0, n * 1000);
        }
        record.errors.add(ErrorKind::Reset, 3);
        let finished = Finished {
            record,
            is_measured: true,
            open_at_end: 61,
            fatal: None,
        };
        let attachment = Attachment {
            is_zero_copy: false,
            is_native: true,
            poll: "busy",
            core: 1,
        };
        let cost = Cost {
            pids: vec![7],
            end: Usage {
                cpu_nanos: SECOND,
                voluntary_switches: 30,
                involuntary_switches: 10,
                resident_bytes: 5,
            },
            resident_bytes_max: 9,
            ..Cost::default()
        };
        let server = with_server.then_some(&cost);
        let series = Series {
            began_at: 1e9,
            points: vec![(0.0, 0), (0.5, 250)],
        };
        Report::new(&plan(), attachment, &finished, server, &Cost::default(), 5)
            .with_series(Some(series))
    }

    fn keys(value: &serde_json::Value) -> Vec<&str> {
        let object = value.as_object().unwrap();
        object.keys().map(String::as_str).collect()
    }

    #[test]
    fn json_has_every_key_and_the_right_values() {
        let json: serde_json::Value = serde_json::from_str(&report(true).json()).unwrap();
        let mut expected = [
            "target",
            "mode",
            "xdp",
            "parameters",
            "seconds",
            "connections",
            "requests",
            "requests_per_second",
            "bytes_received",
            "bytes_per_second",
            "bytes_sent",
            "bytes_sent_per_second",
            "offered_per_second",
            "unfinished",
            "latency_us",
            "errors",
            "errors_total",
            "server",
            "generator",
            "series",
        ];
        expected.sort_unstable();
        let mut found = keys(&json);
        found.sort_unstable();
        assert_eq!(found, expected);
        for (part, wanted) in [
            (
                "parameters",
                &[
                    "connections",
                    "idle",
                    "depth",
                    "rate",
                    "size",
                    "slow",
                    "sources",
                    "duration_s",
                    "warmup_s",
                    "timeout_s",
                    "open_rate",
                    "poll",
                    "core",
                    "seed",
                ][..],
            ),
            ("connections", &["opened", "established", "open_at_end"]),
            (
                "latency_us",
                &["mean", "p50", "p90", "p99", "p99_9", "p99_99", "max", "cdf"],
            ),
            (
                "errors",
                &[
                    "refused",
                    "reset",
                    "closed_early",
                    "connect_timeout",
                    "timeout",
                    "corrupt",
                    "unexpected",
                    "bad_status",
                    "bad_response",
                    "bad_length",
                    "bad_body",
                    "not_closed",
                    "lost",
                ],
            ),
            (
                "server",
                &[
                    "pids",
                    "cpu_s",
                    "cpu_us_per_request",
                    "voluntary_switches",
                    "involuntary_switches",
                    "switches_per_request",
                    "resident_bytes_begin",
                    "resident_bytes_end",
                    "resident_bytes_max",
                ],
            ),
            ("generator", &["cpu_s", "cpu_us_per_request", "lost_frames"]),
            ("series", &["began_at", "points"]),
        ] {
            let mut wanted = wanted.to_vec();
            wanted.sort_unstable();
            let mut found = keys(&json[part]);
            found.sort_unstable();
            assert_eq!(found, wanted, "{part}");
        }
        assert_eq!(json["mode"], "copy");
        assert_eq!(json["requests_per_second"], 500.0);
        assert_eq!(json["latency_us"]["p50"].as_f64().unwrap().round(), 500.0);
        assert_eq!(json["latency_us"]["max"].as_f64().unwrap().round(), 1000.0);
        assert_eq!(json["errors"]["reset"], 3);
        assert_eq!(
            (&json["errors_total"], &json["connections"]["open_at_end"]),
            (&3.into(), &61.into())
        );
        assert_eq!(json["server"]["cpu_us_per_request"], 1000.0);
        assert_eq!(json["server"]["switches_per_request"], 0.04);
        assert!(json["parameters"]["rate"].is_null());
        assert_eq!(json["series"]["points"][1], serde_json::json!([0.5, 250]));
        let cdf = json["latency_us"]["cdf"].as_array().unwrap();
        assert!(cdf.len() > 10 && cdf.last().unwrap()[1] == 1.0);
        let fractions: Vec<f64> = cdf.iter().map(|point| point[1].as_f64().unwrap()).collect();
        assert!(fractions.is_sorted());
    }

    #[test]
    fn what_does_not_apply_is_null() {
        let finished = Finished {
            record: Record::new().unwrap(),
            is_measured: false,
            open_at_end: 0,
            fatal: None,
        };
        let attachment = Attachment {
            is_zero_copy: true,
            is_native: false,
            poll: "sleep",
            core: 0,
        };
        let plan = Plan {
            target: "http://10.0.0.2/".parse().unwrap(),
            rate: Some(0.5),
            ..plan()
        };
        let report = Report::new(&plan, attachment, &finished, None, &Cost::default(), 0);
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert!(json["server"].is_null() && json["series"].is_null());
        assert!(json["latency_us"]["p50"].is_null());
        assert!(json["parameters"]["size"].is_null());
        assert!(json["generator"]["cpu_us_per_request"].is_null());
        assert_eq!(
            (&json["mode"], &json["xdp"]),
            (&"zero-copy".into(), &"generic".into())
        );
        assert_eq!(json["offered_per_second"], 0.5);
        assert!(report.to_string().contains("p50 -"));
    }

    #[test]
    fn text_for_people() {
        let text = report(true).to_string();
        for part in [
            "tcp-echo://10.0.0.2:7 from 10.9.1.0/24, XDP native, copy; 64 connections",
            "requests     1000 in 2.00 s: 500/s",
            "errors       3 reset",
            "61 open at the end",
            "1.00 s of processor time, 1000.00 µs per request",
            "5 frames came faster",
        ] {
            assert!(text.contains(part), "no {part:?} in:\n{text}");
        }
        let without = report(false).to_string();
        assert!(!without.contains("server ") && !without.contains("uploads"));
    }
}
