// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Requests of the TEE queue, with protected memory: each is answered, no application harms the next client, and what the TEE alone
//! may see does not reach an attachment of others.
//!
//!     ci/fuzz 60

use arbitrary::{Arbitrary, Unstructured};
use pinbed_abi::ta::{self, Uuid};
use pinbed_abi::tee::*;
use pinbed_abi::wire;
use pinbed_engine::{DEFAULT_LIMITS, Engine, Submitted};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromBytes, IntoBytes};

/// Not acipher, ecdh, ecdsa and sign_verify, whose keys take long.
const APPLICATIONS: [Uuid; 8] = [
    ta::aes::UUID,
    ta::hello_world::UUID,
    ta::hotp::UUID,
    ta::pin::UUID,
    ta::playback::UUID,
    ta::random::UUID,
    ta::secure_storage::UUID,
    ta::sha::UUID,
];

const LENGTH: usize = 1 << 16;

thread_local! {
    /// One for all inputs; each begins with zeros.
    static MEMORY: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), LENGTH)]).unwrap();
}

#[derive(Arbitrary, Debug)]
enum Op<'a> {
    Raw(&'a [u8]),
    Open {
        context: u8,
        application: u8,
        login: u8,
        params: [Parameter; 4],
    },
    Invoke {
        context: u8,
        session: u8,
        function: u8,
        params: [Parameter; 4],
    },
    Cancel {
        context: u8,
        session: u8,
    },
    Close {
        context: u8,
        session: u8,
    },
    CloseContext {
        context: u8,
    },
    Attach {
        protected: bool,
        at: u8,
        length: u16,
    },
    Detach {
        handle: u8,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Parameter {
    attr: u8,
    a: u16,
    b: u16,
    handle: u8,
    /// Makes the numbers large.
    wild: u8,
}

impl Parameter {
    fn to_wire(self) -> Param {
        let scale = if self.wild == 7 { 1 << 48 } else { 1 };
        Param {
            attr: u64::from(self.attr % 8).into(),
            a: (u64::from(self.a % 512) * scale).into(),
            b: (u64::from(self.b % 4096) * scale).into(),
            c: u64::from(self.handle % 12).into(),
        }
    }
}

fn header(op: u32) -> wire::RequestHeader {
    wire::RequestHeader {
        op: op.into(),
        ..Default::default()
    }
}

struct Rig {
    engine: Engine,
    memory: GuestMemoryMmap,
}

impl Rig {
    /// What a call that waits is answered is its client's; here it is cancelled.
    fn call(&self, request: &[u8]) -> Vec<u8> {
        let room = size_of::<CallResponse>();
        let answer = match self.engine.tee(request, room) {
            Submitted::Answer(answer) => answer,
            Submitted::Call(call) => {
                // Each access asks, so a loop without end would not end here, and be found.
                let left = std::cell::Cell::new(200);
                let go_on = || {
                    left.set(left.get() - 1);
                    left.get() > 0
                };
                self.engine.run(&self.memory, call, &go_on)
            }
        };
        assert!(answer.bytes.len() <= room);
        answer.bytes
    }

    fn attach(&self, protected: bool, at: u64, length: u64) {
        let request = wire::AttachRequest {
            header: header(wire::OP_ATTACH),
            direction: wire::DIRECTION_BOTH.into(),
            segment_count: 1.into(),
            length: length.into(),
            flags: u32::from(protected).into(),
            ..Default::default()
        };
        let segment = wire::Segment {
            address: at.into(),
            length: length.into(),
        };
        let request = [request.as_bytes(), segment.as_bytes()].concat();
        self.engine.control(&self.memory, &request, 64, &|| true);
    }
}

/// What a fuzzer calls, and the test of the corpus.
pub fn run(data: &[u8]) {
    let Ok(ops) = Vec::<Op>::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let rig = Rig {
        engine: Engine::new(DEFAULT_LIMITS),
        memory: MEMORY.with(GuestMemoryMmap::clone),
    };
    rig.memory
        .write_slice(&[0; LENGTH], GuestAddress(0))
        .unwrap();
    rig.attach(false, 0, 0x4000);
    rig.attach(true, 0x8000, 0x1000);
    let params = |params: [Parameter; 4]| params.map(Parameter::to_wire);
    for op in ops {
        let request = match op {
            Op::Raw(bytes) => bytes.to_vec(),
            Op::Open {
                context,
                application,
                login,
                params: given,
            } => OpenSessionRequest {
                header: header(OP_OPEN_SESSION),
                context: u64::from(context % 3).into(),
                uuid: APPLICATIONS[usize::from(application) % APPLICATIONS.len()],
                client_login: u32::from(login % 8).into(),
                params: params(given),
                ..Default::default()
            }
            .as_bytes()
            .to_vec(),
            Op::Invoke {
                context,
                session,
                function,
                params: given,
            } => {
                let request = InvokeRequest {
                    header: header(OP_INVOKE),
                    context: u64::from(context % 3).into(),
                    session: u32::from(session % 12).into(),
                    function: u32::from(function % 16).into(),
                    params: params(given),
                    ..Default::default()
                };
                // It may be one that waits for time to pass.
                if request.function.get() == ta::pin::WAIT {
                    continue;
                }
                request.as_bytes().to_vec()
            }
            Op::Cancel { context, session } => CancelRequest {
                header: header(OP_CANCEL),
                context: u64::from(context % 3).into(),
                session: u32::from(session % 12).into(),
                ..Default::default()
            }
            .as_bytes()
            .to_vec(),
            Op::Close { context, session } => CloseSessionRequest {
                header: header(OP_CLOSE_SESSION),
                context: u64::from(context % 3).into(),
                session: u32::from(session % 12).into(),
                ..Default::default()
            }
            .as_bytes()
            .to_vec(),
            Op::CloseContext { context } => CloseContextRequest {
                header: header(OP_CLOSE_CONTEXT),
                context: u64::from(context % 3).into(),
            }
            .as_bytes()
            .to_vec(),
            Op::Attach {
                protected,
                at,
                length,
            } => {
                rig.attach(protected, u64::from(at) << 8, u64::from(length % 0x2000));
                continue;
            }
            Op::Detach { handle } => {
                let request = wire::DetachRequest {
                    header: header(wire::OP_DETACH),
                    handle: u64::from(handle % 12).into(),
                };
                rig.engine
                    .control(&rig.memory, request.as_bytes(), 64, &|| true);
                continue;
            }
        };
        rig.call(&request);
    }
    // The next client is served.
    let open = OpenSessionRequest {
        header: header(OP_OPEN_SESSION),
        context: 99.into(),
        uuid: ta::pin::UUID,
        ..Default::default()
    };
    let answer = CallResponse::read_from_bytes(&rig.call(open.as_bytes())).unwrap();
    assert_eq!(answer.result.get(), TEEC_SUCCESS);
}
