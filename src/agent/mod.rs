//! The guest agent: one typed client for a socket or a URL, and the stand-in for laptops and tests.
