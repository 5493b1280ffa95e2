//! voidrun: untrusted code in a real virtual machine, as easily as calling a function.

fn main() {}
