//! `ilet-httpd` on a quiet site: requests that come one at a time, with pauses between them, are answered by the fast
//! path, and still never with what was in a file more than a second ago.

use std::time::Duration;

use interruptlet_tests::report::Report;
use interruptlet_tests::server::Server;
use interruptlet_tests::site::{Site, get};
use interruptlet_tests::wait::expect_soon;

/// Longer than anything is served unseen.
const A_PAUSE: Duration = Duration::from_millis(1200);
/// A file that changed less than this before it was read is read again.
const SETTLED: Duration = Duration::from_secs(3);

/// The counters after `requests` requests: what is printed every second may be older.
fn counters_after(server: &Server, requests: u64) -> Report {
    expect_soon("the counters of all requests", || {
        let lines = server.stdout();
        let report = Report::last_in(lines.iter().map(String::as_str))?;
        let answered = report.counter("tcp_requests") + report.counter("deferred");
        (answered >= requests).then_some(report)
    })
}

fn serve(site: &Site) -> Server {
    site.launch().with("--stats-interval", "1").start()
}

/// Sends requests with pauses between them, after one that has the file read. All of them must be the fast path's,
/// but for one: where something else has the machine for half a second, nobody looks at the file meanwhile.
fn assert_served_by_the_fast_path(
    site: &Site,
    pauses: u64,
    pause: Duration,
    request: impl FnMut(),
) {
    let mut request = request;
    let server = serve(site);
    request();
    let before = counters_after(&server, 1);
    assert_eq!(before.counter("deferred"), 1, "{before:?}");
    for _ in 0..pauses {
        std::thread::sleep(pause);
        request();
    }
    let after = counters_after(&server, 1 + pauses);
    assert!(after.counter("deferred") <= 2, "{after:?}");
    assert_eq!(after.counter("services_demoted"), 0, "{after:?}");
    server.stop();
}

#[test]
fn a_slow_client_on_one_connection_is_served_by_the_fast_path() {
    let Some(site) = Site::new() else { return };
    std::thread::sleep(SETTLED);
    let mut connection = None;
    assert_served_by_the_fast_path(&site, 8, A_PAUSE, || {
        let connection = connection.get_or_insert_with(|| site.connect());
        connection.send(get("/small.txt", ""));
        assert_eq!(connection.response().body, Site::SMALL.as_bytes());
    });
}

#[test]
fn connections_of_one_request_each_are_served_by_the_fast_path() {
    let Some(site) = Site::new() else { return };
    std::thread::sleep(SETTLED);
    let url = site.url(interruptlet_tests::lab::Version::V4, "/small.txt");
    assert_served_by_the_fast_path(&site, 8, A_PAUSE, || {
        assert_eq!(site.curl(&[&url]), Site::SMALL.as_bytes());
    });
}

/// A hundred requests at the pace at which handlers used to be demoted after some twenty.
#[test]
fn a_handler_that_is_called_now_and_then_stays_on_the_core() {
    let Some(site) = Site::new() else { return };
    std::thread::sleep(SETTLED);
    let mut connection = None;
    assert_served_by_the_fast_path(&site, 100, Duration::from_millis(50), || {
        let connection = connection.get_or_insert_with(|| site.connect());
        connection.send(get("/small.txt", ""));
        assert_eq!(connection.response().body, Site::SMALL.as_bytes());
    });
}

#[test]
fn a_change_on_a_quiet_site_is_seen() {
    let Some(site) = Site::new() else { return };
    let server = serve(&site);
    let mut connection = site.connect();
    for content in ["one", "two", "something else"] {
        site.put("small.txt", content);
        std::thread::sleep(A_PAUSE);
        connection.send(get("/small.txt", ""));
        assert_eq!(connection.response().body, content.as_bytes());
    }
    std::fs::remove_file(site.root().join("small.txt")).expect("remove");
    std::thread::sleep(A_PAUSE);
    connection.send(get("/small.txt", ""));
    assert_eq!(connection.response().status, 404);
    server.stop();
}
