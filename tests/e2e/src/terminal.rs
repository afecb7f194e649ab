//! A person at a terminal: a command of alice's on a real pseudo terminal, told what to wait for and what to type.

use crate::command::{Run, sx};
use serde_json::{Value, json};

/// One thing that the person does.
#[derive(Clone, Debug)]
pub enum Step<'a> {
    /// Waits for this regular expression in what has appeared since the last match.
    Expect(&'a str),
    Type(&'a str),
    /// Makes the window so many rows and columns large; programs get SIGWINCH.
    Resize(u16, u16),
}

/// Plays the steps; a step that does not come within a minute ends it with exit code 99 and what was seen last.
const PLAYER: &str = r#"
import fcntl, json, os, pty, re, select, struct, sys, termios, time
argv, steps = sys.argv[2:], json.loads(sys.argv[1])
def size(fd, rows, cols): fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', rows, cols, 0, 0))
pid, fd = pty.fork()
if pid == 0:
    size(0, 33, 99)
    os.execvp(argv[0], argv)
seen = b''
def more(until):
    global seen
    ready = select.select([fd], [], [], max(0, until - time.time()))[0]
    if not ready: return False
    try: part = os.read(fd, 65536)
    except OSError: part = b''
    seen += part
    sys.stdout.buffer.write(part)
    return bool(part)
for kind, value in steps:
    if kind == 'type': os.write(fd, value.encode())
    elif kind == 'resize': size(fd, *value)
    else:
        until = time.time() + 60
        while not (found := re.search(value.encode(), seen)):
            if not more(until):
                print(f'\nnot seen: {value!r} in {seen[-500:]!r}', flush=True)
                os._exit(99)
        seen = seen[found.end():]
while more(time.time() + 60): pass
sys.stdout.flush()
os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 255)
"#;

/// Runs `command` as alice on the login node, on a terminal of 33 rows and 99 columns.
pub fn at_terminal(command: &[&str], steps: &[Step<'_>]) -> Run {
    let steps: Vec<Value> = steps
        .iter()
        .map(|step| match step {
            Step::Expect(text) => json!(["expect", text]),
            Step::Type(text) => json!(["type", text]),
            Step::Resize(rows, columns) => json!(["resize", [rows, columns]]),
        })
        .collect();
    let steps = Value::from(steps).to_string();
    let all: Vec<&str> = ["python3", "-c", PLAYER, &steps].into_iter().chain(command.iter().copied()).collect();
    sx("login", Some("alice"), &all)
}
