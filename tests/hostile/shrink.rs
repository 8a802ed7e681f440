//! A file that shrinks while it is mapped: the process must end with a message and the exit code for invalid input.
//! Each case runs in a child, which is this test binary with one test and a variable set.

use std::{
    env, fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use bantam::{
    checkpoint::{Checkpoint, Dtype, write_file},
    platform::install_sigbus_handler,
};

const VARIABLE: &str = "BANTAM_TEST_SHRINK";
const BYTES: usize = 1 << 20;

fn write(folder: &Path) -> PathBuf {
    let path = folder.join("model.safetensors");
    write_file(&path, &[("w", Dtype::U8, vec![BYTES], vec![1; BYTES])]).unwrap();
    path
}

fn child(test: &str, folder: &Path) -> Output {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, folder)
        .output()
        .unwrap()
}

fn sum(bytes: &[u8]) -> u64 {
    std::hint::black_box(bytes).iter().map(|&byte| u64::from(byte)).sum()
}

#[test]
fn a_checkpoint_that_shrinks_ends_the_process_with_a_message() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path());
    let output = child("shrink::reads_a_checkpoint_while_it_shrinks", folder.path());
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains(&format!("error: `{}` cannot be read any more", path.display())), "{message}");
    assert_eq!(message.matches("error:").count(), 1, "{message}");
}

#[test]
#[ignore = "the child of the test above"]
fn reads_a_checkpoint_while_it_shrinks() {
    let Some(folder) = env::var_os(VARIABLE) else { return };
    install_sigbus_handler();
    // One that is closed again and one that stays whole: neither may be blamed.
    let (closed, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(closed.path());
    drop(Checkpoint::open(&write(closed.path())).unwrap());
    let whole = Checkpoint::open(&write(whole.path())).unwrap();
    let checkpoint = Checkpoint::open(folder.as_ref()).unwrap();
    let tensor = checkpoint.tensor("w").unwrap();
    assert_eq!(sum(&checkpoint.bytes(tensor)), BYTES as u64);
    fs::File::options().write(true).open(&checkpoint.files()[0].path).unwrap().set_len(4096).unwrap();
    assert_eq!(sum(&whole.bytes(whole.tensor("w").unwrap())), BYTES as u64);
    // Not reached beyond this line, whatever the sum.
    panic!("read {} from a file that is gone", sum(&checkpoint.bytes(tensor)));
}

#[test]
fn another_map_that_shrinks_ends_the_process_as_without_a_handler() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let output = child("shrink::reads_another_map_while_it_shrinks", folder.path());
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{:?} {message}", output.status);
    assert!(!message.contains("error:"), "{message}");
}

#[test]
#[ignore = "the child of the test above"]
#[expect(unsafe_code, reason = "a map that the library does not know")]
fn reads_another_map_while_it_shrinks() {
    let Some(folder) = env::var_os(VARIABLE) else { return };
    install_sigbus_handler();
    let path = Path::new(&folder).join("model.safetensors");
    // SAFETY: only read, by this process, which is about to die of it.
    let map = unsafe { memmap2::Mmap::map(&fs::File::open(&path).unwrap()) }.unwrap();
    let before = sum(&map);
    fs::File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    panic!("read {} and then {} from a file that is gone", before, sum(&map));
}
