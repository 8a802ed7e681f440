//! The few calls to the operating system that the standard library lacks. All `unsafe` outside the memory map is here.
