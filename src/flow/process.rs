//! Another program, run for one file: without our environment, for a limited time, with a bound on what it says. It ends with us, and
//! so do those that it has started itself.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Call, Error};

/// How often a running program is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// What a program is given of our environment: where programs and tesseract's languages lie, and how many threads it takes.
const KEPT: [&str; 3] = ["PATH", "TESSDATA_PREFIX", "OMP_THREAD_LIMIT"];
/// Most bytes of complaints that are read.
const MAX_COMPLAINT: u64 = 1 << 16;

/// Why a program gave nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// It cannot be run here.
    Start(String),
    /// It ran out of time.
    Slow,
    /// It wrote more than allowed.
    Much,
    /// It said no: its name, and the first line of its complaint.
    Refused(String),
    /// Nobody waits any more.
    Gone(Error),
}

/// What a program writes, if it ends well in time.
pub(super) fn run(mut command: Command, most: u64, until: Instant, call: &Call) -> Result<Vec<u8>, Failure> {
    let kept: Vec<_> = KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))).collect();
    command.env_clear().envs(kept);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let program = command.get_program().to_string_lossy().into_owned();
    let started = command.spawn();
    let child = started.map_err(|e| Failure::Start(format!("`{program}` cannot be started: {e}")))?;
    let mut running = Running(child);
    let (out, err) = (running.0.stdout.take(), running.0.stderr.take());
    std::thread::scope(|scope| {
        let out = scope.spawn(move || read_up_to(out, most));
        let err = scope.spawn(move || read_up_to(err, MAX_COMPLAINT));
        let status = loop {
            match running.0.try_wait() {
                Ok(Some(status)) => break Ok(status),
                Ok(None) => {}
                Err(e) => break Err(Failure::Start(format!("`{program}` cannot be waited for: {e}"))),
            }
            if let Err(gone) = call.check() {
                break Err(Failure::Gone(gone));
            }
            if Instant::now() >= until {
                break Err(Failure::Slow);
            }
            std::thread::sleep(LOOK);
        };
        running.end();
        let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
        match status? {
            status if status.success() && out.len() as u64 <= most => Ok(out),
            status if status.success() => Err(Failure::Much),
            _ => {
                let said = String::from_utf8_lossy(&err);
                let said = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason is given");
                Err(Failure::Refused(format!("{program}: {said}")))
            }
        }
    })
}

/// Reads to the end, and at most one byte more than allowed.
fn read_up_to(source: Option<impl Read>, most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(source) = source {
        // What was read before a broken pipe counts; the program's status says that it broke.
        _ = source.take(most + 1).read_to_end(&mut bytes);
    }
    bytes
}

/// A program that does not outlive us.
struct Running(Child);

impl Running {
    fn end(&mut self) {
        // What it has started is in its group. It may have ended by itself.
        #[cfg(target_os = "linux")]
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw) {
            _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, most: u64, time: Duration) -> Result<Vec<u8>, Failure> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, most, Instant::now() + time, &Call::default())
    }

    #[test]
    fn every_end_of_a_program_is_told() {
        let ample = Duration::from_secs(20);
        assert_eq!(shell("echo word", 100, ample).unwrap(), b"word\n");
        assert!(matches!(shell("echo word", 4, ample), Err(Failure::Much)));
        assert!(matches!(shell("sleep 30", 4, Duration::from_millis(50)), Err(Failure::Slow)));
        let refused = shell("echo; echo no such thing >&2; exit 3", 100, ample);
        assert!(matches!(&refused, Err(Failure::Refused(why)) if why == "sh: no such thing"), "{refused:?}");
        assert_eq!(shell("echo $HOME", 100, ample).unwrap(), b"\n", "our environment is not its own");
        // What it has started ends with it: the pipe that it would hold open is closed at once.
        let begun = Instant::now();
        assert!(matches!(shell("sleep 30 & sleep 30", 4, Duration::from_millis(50)), Err(Failure::Slow)));
        assert!(begun.elapsed() < ample, "{:?}", begun.elapsed());
        let missing = run(Command::new("no-such-program"), 1, Instant::now(), &Call::default());
        assert!(matches!(missing, Err(Failure::Start(_))));
        let gone = Call { deadline: Some(Instant::now()), ..Call::default() };
        let mut command = Command::new("sleep");
        command.arg("30");
        let late = run(command, 1, Instant::now() + ample, &gone);
        assert!(matches!(late, Err(Failure::Gone(Error::Deadline))), "{late:?}");
    }
}
