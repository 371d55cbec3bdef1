// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A socket for debuggers: whoever connects is told what is attached, and the connection ends. It works while the guest stands still.

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

use pinbed_engine::Engine;

/// The socket, which listens and is not served yet.
#[derive(Debug)]
pub(crate) struct Socket(UnixListener);

/// Whose buffers are told of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inspector(Arc<Mutex<Weak<Engine>>>);

impl Socket {
    /// Listens at `path`, in the place of whatever was there. To be called before the process is confined.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => UnixListener::bind(path).map(Socket),
        }
    }

    /// Answers debuggers for as long as the process lives, one after the other.
    pub fn serve(self) -> io::Result<Inspector> {
        let inspector = Inspector::default();
        let of = inspector.clone();
        let answer = move || {
            for mut connection in self.0.incoming().flatten() {
                let text = of.engine().map(|engine| engine.describe_holds());
                if let Err(error) = connection.write_all(text.unwrap_or_default().as_bytes()) {
                    log::debug!("a debugger left: {error}");
                }
            }
        };
        thread::Builder::new()
            .name("inspect".into())
            .spawn(answer)?;
        Ok(inspector)
    }
}

impl Inspector {
    /// From now on tells of this engine, while it lives.
    pub fn watch(&self, engine: &Arc<Engine>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(engine);
    }

    fn engine(&self) -> Option<Arc<Engine>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .upgrade()
    }
}
