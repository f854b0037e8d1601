//! What the kernel says of a process.

/// Of a row of /proc/PID/stat, whose columns are those of proc_pid_stat(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Has ended, and its parent has not asked yet how.
    pub zombie: bool,
    pub parent: u32,
}

/// `None` where there is none.
pub fn look(pid: u32) -> Option<Process> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(stat: &str) -> Option<Process> {
    // A name in parentheses may have anything in it, spaces and parentheses too.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut columns = rest.split_ascii_whitespace();
    Some(Process {
        zombie: columns.next()? == "Z",
        parent: columns.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_have_anything_in_it() {
        let row = |name, state| parse(&format!("7 ({name}) {state} 41 7 7 0 -1 4194560 105"));
        for name in ["nginx", "a b", ") Z 3 (", ""] {
            assert_eq!(
                row(name, 'S'),
                Some(Process {
                    zombie: false,
                    parent: 41
                }),
                "{name:?}"
            );
            assert_eq!(
                row(name, 'Z'),
                Some(Process {
                    zombie: true,
                    parent: 41
                }),
                "{name:?}"
            );
        }
        assert_eq!(parse(""), None);
    }

    #[test]
    fn we_are_a_process_and_no_process_has_the_highest_number() {
        let parent = std::os::unix::process::parent_id();
        assert_eq!(
            look(std::process::id()),
            Some(Process {
                zombie: false,
                parent
            })
        );
        assert_eq!(look(u32::MAX), None);
    }
}
