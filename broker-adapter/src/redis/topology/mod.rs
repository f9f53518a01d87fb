//! Where the masters are: as sentinels say (`sentinel`), or as a cluster says (`cluster`).

pub(crate) mod cluster;
pub(crate) mod sentinel;
