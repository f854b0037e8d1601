//! Nothing reaches a rendered file unquoted: whatever is accepted is read back by its consumer as what the spec holds,
//! and rendered twice it gives the same bytes. [`configuration`] looks at all of that.

#[path = "../../tests/specs/mod.rs"]
mod specs;

use proptest::prelude::*;
use proptest::sample::select;

use super::fuzz::configuration;

/// What a path may hold, or may not.
fn place() -> impl Strategy<Value = String> {
    let odd = "[ '\"\\\\%;#$`{}()*?~|>@=,&!<:\\[\\]_./é☃\u{1}\u{85}\u{2028}-]{1,6}";
    let odd = prop_oneof![odd, "\\PC{1,6}"].prop_map(|odd| format!("srv/{odd}x"));
    prop_oneof![1 => Just("var/lib/vpc".to_owned()), 2 => odd]
}

proptest! {
    #![proptest_config(specs::cases(128))]

    #[test]
    fn nothing_reaches_a_file_unquoted(
        file in specs::file(),
        (state, exe) in (place(), place()),
        nginx in select(&["1.18.0", "1.22.1", "1.29.0", "none"]),
        root: bool,
    ) {
        let facts = format!(
            "app_id=aa00000000000000000000000000000000000001\nstate_dir={state}\nexe={exe}\nnginx={nginx}\nroot={root}\n"
        );
        configuration(format!("{}\n=== facts\n{facts}", file.text()).as_bytes());
    }
}
