//! The control stream: the agent connects to the host once it is ready, says so, and takes what concerns the whole machine.

use crate::stream::{Stream, StreamError};
use crate::{Agent, power, refusal, vsock};
use protocol::{ErrorCode, FrameType, HOST_PORT, Hello, Request, VERSION};
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Between attempts to connect: a host that is being restored is back soon, one that is gone for good does not come.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Keeps the control stream open for ever. `began_us` is when the agent began, by [`clock_us`].
pub fn run(agent: &Arc<Agent>, began_us: u64) -> ! {
    let hello = Hello {
        version: VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        began_us,
        ready_us: clock_us(),
        becomes_another: true,
    };
    let mut pause = FIRST_PAUSE;
    loop {
        if let Ok(socket) = vsock::connect(HOST_PORT) {
            pause = FIRST_PAUSE;
            // However it ended, the host is asked again: after a restore all streams are broken.
            drop(serve(agent, Stream::new(socket), &hello));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

fn serve(agent: &Arc<Agent>, mut stream: Stream, hello: &Hello) -> Result<(), StreamError> {
    stream.message(hello)?;
    loop {
        match stream.read(|frame| frame.message::<Request>())? {
            Ok(Request::PowerOff { grace_ms }) => {
                drop(stream.mark(FrameType::Done));
                power::off(agent, grace_ms);
            }
            Ok(Request::Reseed { wall_time_ns, entropy, config }) => {
                stream.answer(power::reseed(agent, wall_time_ns, &entropy, config))?;
            }
            Ok(_) => {
                stream.message(&refusal(ErrorCode::BadRequest, "this request needs a stream of its own"))?;
            }
            Err(error) => {
                stream.message(&refusal(ErrorCode::BadRequest, crate::serve::with_source(&error)))?;
            }
        }
    }
}

/// Microseconds since boot.
pub fn clock_us() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec.cast_unsigned() * 1_000_000 + time.tv_nsec.cast_unsigned() / 1000
}
