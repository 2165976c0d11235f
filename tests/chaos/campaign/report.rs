//! The table of a campaign: one line for each run.

use std::fmt::Write as _;

use serde_json::Value;

use super::Run;

/// The columns of the verdict that the table shows, and their headings.
const COLUMNS: [(&str, &str); 19] = [
    ("attempted", "attempted"),
    ("confirmed", "confirmed"),
    ("stored", "stored"),
    ("delivered", "delivered"),
    ("acknowledged", "acked"),
    ("lost", "lost"),
    ("duplicated", "dup"),
    ("reordered", "reord"),
    ("leaked", "leaked"),
    ("acknowledged_but_replayed", "replayed"),
    ("unexplained_gap", "gap"),
    ("count_mismatch", "counts"),
    ("not_drained", "undrained"),
    ("readiness_untrue", "untrue"),
    ("memory_above_bound", "memory"),
    ("log_leaks", "logs"),
    ("unexpected", "unexp"),
    ("recovery_above_bound", "late"),
    ("slowest_recovery_seconds", "slowest"),
];

/// Further counts, and their headings: the faults with and without an effect, and the judged share of acks.
const ALSO: [(&str, &str); 3] = [
    ("faults", "faults"),
    ("faults_without_effect", "no effect"),
    ("acks_judged_percent", "acks judged (%)"),
];

/// The verdicts of all runs.
#[derive(Default)]
pub struct Report {
    rows: Vec<Vec<String>>,
    dirty: usize,
}

impl Report {
    pub fn add(&mut self, run: &Run<'_>, verdict: &Value, clean: bool) {
        self.dirty += usize::from(!clean);
        let faults = match run.options.faults.len() {
            0 => "all".to_owned(),
            _ => run.options.faults.join("+"),
        };
        let mut row = vec![
            run.seed.to_string(),
            run.seconds.to_string(),
            run.scenario.name.to_owned(),
            faults,
        ];
        row.extend(
            COLUMNS
                .iter()
                .map(|(name, _)| match &verdict["columns"][*name] {
                    Value::Null => "-".to_owned(),
                    Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                        Some(number) => format!("{number:.1}"),
                        None => number.to_string(),
                    },
                    other => other.to_string(),
                }),
        );
        let also = |name: &str| verdict["also"][name].to_string();
        row.extend(ALSO.iter().map(|(name, _)| also(name)));
        row.push(if clean { "clean" } else { "BROKEN" }.to_owned());
        self.rows.push(row);
    }

    pub fn is_clean(&self) -> bool {
        self.dirty == 0
    }

    /// A Markdown table.
    pub fn table(&self) -> String {
        let mut text = String::from("| seed | seconds | on | faults |");
        for (_, heading) in COLUMNS {
            write!(text, " {heading} |").expect("a string can be written");
        }
        for (_, heading) in ALSO {
            write!(text, " {heading} |").expect("a string can be written");
        }
        text += " verdict |\n|";
        text += &"---|".repeat(COLUMNS.len() + ALSO.len() + 5);
        for row in &self.rows {
            write!(text, "\n| {} |", row.join(" | ")).expect("a string can be written");
        }
        text
    }
}
