//! The dstack guest agent: the client of the real one, and a stand-in for laptops and tests.

pub mod dev;
