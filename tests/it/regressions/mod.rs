//! Defects that were found and fixed, each as a test that is named by its cause and fails on what was there before.
//! New ones go beside the ones they resemble; nothing here describes the protocol as a whole, `protocol` does.

mod joins;
mod posts;
mod refusals;
mod requests;
mod resumes;
mod rolling;
