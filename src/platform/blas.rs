//! The one setting of OpenBLAS.

/// Makes OpenBLAS compute on the calling thread only, for the whole process.
#[expect(unsafe_code, reason = "a setting of the C library that no crate wraps")]
pub fn use_one_blas_thread() {
    unsafe extern "C" {
        fn openblas_set_num_threads(threads: std::ffi::c_int);
    }
    // SAFETY: the library behind `ndarray-linalg` is OpenBLAS (feature `openblas-system`), which exports this function
    // with this signature; it may be called at any time and from any thread.
    unsafe { openblas_set_num_threads(1) }
}
