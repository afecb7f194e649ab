//! Images: what an image reference may open, and what an image may do while it is unpacked.
