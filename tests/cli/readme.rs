//! The README's lines for curl. That they do what it says is tested where there are guests.

use std::collections::BTreeSet;

use crate::readme_lines::{asked, route_of, routes};

#[test]
fn every_route_has_a_line() {
    let routes = routes();
    assert!(routes.len() > 45, "{routes:?}");
    let mut shown = BTreeSet::new();
    for (method, path) in asked() {
        let route = route_of(&routes, &method, &path);
        shown.insert(route.unwrap_or_else(|| panic!("{method} {path} is no route")));
    }
    let missing: Vec<_> = routes.iter().filter(|route| !shown.contains(route)).collect();
    assert!(missing.is_empty(), "the README does not show {missing:?}");
}
