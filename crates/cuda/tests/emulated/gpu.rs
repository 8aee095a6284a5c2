//! The first GPU, in a thread of its own, and memory that it shares with the tests.

use cudarc::driver::sys::{self, CUmemAttach_flags, CUresult};
use lowtide_cuda::ops::launches::Launch;
use lowtide_cuda::{Gpu, has_kernels};
use std::ffi::c_void;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};

/// What the thread is asked for.
enum Request {
    /// So many bytes; their address.
    Memory(usize),
    Run(Launch),
}

type Questions = Sender<(Request, Sender<u64>)>;

/// Whether tests are to run on a GPU.
pub(crate) fn is_wanted() -> bool {
    std::env::var_os("LOWTIDE_TEST_GPU").is_some_and(|wanted| wanted == "1")
}

/// Runs a kernel, and waits for it.
pub(crate) fn run(launch: &Launch) {
    ask(Request::Run(launch.clone()));
}

/// Memory of both, for as long as the process lives.
pub(crate) fn memory(bytes: usize) -> &'static mut [u8] {
    let address = ask(Request::Memory(bytes.max(1))) as *mut u8;
    // SAFETY: the driver gave so many bytes, to this caller alone, and they are never freed.
    unsafe { std::slice::from_raw_parts_mut(address, bytes) }
}

fn ask(request: Request) -> u64 {
    static THREAD: OnceLock<Mutex<Questions>> = OnceLock::new();
    let thread = THREAD.get_or_init(|| {
        let (questions, asked) = channel::<(Request, Sender<u64>)>();
        std::thread::spawn(move || {
            assert!(
                has_kernels(),
                "LOWTIDE_TEST_GPU=1 needs the feature `kernels`"
            );
            let gpu = Gpu::open(0, 1 << 30).unwrap();
            for (request, reply) in asked {
                reply.send(answer(&gpu, &request)).unwrap();
            }
        });
        Mutex::new(questions)
    });
    let (reply, replied) = channel();
    let questions = thread.lock().unwrap_or_else(PoisonError::into_inner);
    questions.send((request, reply)).unwrap();
    drop(questions);
    replied
        .recv()
        .expect("the GPU's thread has ended; see its panic")
}

fn answer(gpu: &Gpu, request: &Request) -> u64 {
    match request {
        Request::Memory(bytes) => {
            let mut address = 0;
            let anyone = CUmemAttach_flags::CU_MEM_ATTACH_GLOBAL as u32;
            // SAFETY: the context of `gpu` is current in this thread, and the pointer is to a live place.
            let answer = unsafe { sys::cuMemAllocManaged(&raw mut address, *bytes, anyone) };
            assert_eq!(
                answer,
                CUresult::CUDA_SUCCESS,
                "{bytes} bytes of shared memory"
            );
            address
        }
        Request::Run(launch) => {
            let pointer = |argument: &u64| std::ptr::from_ref(argument).cast_mut().cast::<c_void>();
            let mut arguments: Vec<*mut c_void> = launch.arguments.iter().map(pointer).collect();
            let Launch {
                kernel,
                grid,
                block,
                shared,
                ..
            } = *launch;
            // SAFETY: the description's addresses are of memory from above, which tests hold.
            unsafe { gpu.launch(kernel, grid, block, shared, &mut arguments) }.unwrap();
            gpu.synchronise().unwrap();
            0
        }
    }
}
