use crate::{Item, Items, Points, matches};

crate::points! {
    ONE = "tests_one";
    TWO = "tests_two";
}

#[test]
fn patterns() {
    for (pattern, name, want) in [
        ("*", "a", true),
        ("a*c", "abbc", true),
        ("a*c", "abbcd", false),
        ("a?c", "abc", true),
        ("a?c", "ac", false),
        ("", "", true),
        ("", "a", false),
        ("**a*", "xay", true),
        ("A", "a", false),
    ] {
        assert_eq!(matches(pattern, name), want, "{pattern} {name}");
    }
}

#[test]
fn switching_and_output() {
    let points = Points::new();
    points.add(POINTS);
    points.add(POINTS);
    let made = points.make("made_three".into());
    assert_eq!(points.matching("*").unwrap().len(), 3);
    assert_eq!(points.set("nobody", true).unwrap_err().to_string(), "unknown event \"nobody\"");
    assert!(points.matching("nobody*").unwrap().is_empty());

    let file = std::env::temp_dir().join(format!("trace-{}", std::process::id()));
    crate::set_file(file.to_str()).unwrap();
    points.set("tests_*", true).unwrap();
    points.set("tests_two", false).unwrap();
    crate::trace!(ONE, "x {}", 1);
    crate::trace!(TWO, "y");
    crate::trace!(made);
    Items::parse("unimp,guest_errors").unwrap().apply();
    crate::log!(GuestErrors, "bad {}", 2);
    crate::log!(Mmu, "no");
    crate::set_file(None).unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "tests_one x 1\nbad 2\n");
    std::fs::remove_file(file).unwrap();
    assert_eq!(Items::parse("int,foo"), Err("foo".into()));
    Items::default().apply();
    assert!(!Item::Unimp.is_on());
}
