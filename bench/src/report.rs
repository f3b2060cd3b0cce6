//! What is printed and written: a row for each target, and a table for each growth.

use std::fmt::Write;

use serde::Serialize;

use crate::cpu::Place;
use crate::harness::{Bar, Case, Costs, Role, Target, median};

/// What was measured of one case, at one place and one point of its axis.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) case: &'static str,
    what: &'static str,
    unit: &'static str,
    #[serde(serialize_with = "as_text")]
    place: Place,
    along: &'static str,
    pub(crate) x: usize,
    pub(crate) contenders: Vec<Costs>,
    pub(crate) verdicts: Vec<Verdict>,
}

/// One target, and how it came out.
#[derive(Serialize)]
pub(crate) struct Verdict {
    pub(crate) who: &'static str,
    against: Option<&'static str>,
    /// The ratio, or for a bar that is no ratio, the figure.
    pub(crate) value: f64,
    is_ratio: bool,
    pub(crate) at_most: f64,
    /// None: not judged at this place.
    pub(crate) met: Option<bool>,
}

fn as_text<S: serde::Serializer>(place: &Place, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(place)
}

impl Costs {
    pub(crate) fn median(&self) -> f64 {
        median(&self.costs)
    }

    fn spread(&self) -> String {
        let (min, max) = self.costs.iter().fold((f64::MAX, f64::MIN), |(min, max), c| (min.min(*c), max.max(*c)));
        format!("{}/{}/{}", short(min), short(self.median()), short(max))
    }
}

/// The median of the ratios inside each round.
fn ratio(over: &Costs, under: &Costs) -> f64 {
    median(&over.costs.iter().zip(&under.costs).map(|(a, b)| a / b).collect::<Vec<_>>())
}

impl Row {
    pub(crate) fn new(case: &Case, place: Place, x: usize, contenders: Vec<Costs>) -> Self {
        let targets = case.targets.iter().filter(|target| {
            let same = |other: &&Target| other.who == target.who && other.bar == target.bar && other.is_judged(place);
            target.is_judged(place) || !case.targets.iter().any(|other| same(&other))
        });
        let verdicts = targets.map(|target| Verdict::new(target, place, &contenders)).collect();
        let Case { name, what, unit, along, .. } = *case;
        Row { case: name, what, unit, place, along, x, contenders, verdicts }
    }

    fn find(&self, name: &str) -> &Costs {
        find(&self.contenders, name)
    }

    pub(crate) fn label(&self) -> String {
        format!("{} {}", self.case, self.place)
    }

    pub(crate) fn title(&self) -> String {
        format!("{}: {}, {}, by {}", self.case, self.what, self.unit, self.along)
    }

    /// One line for each target; the first names also those that none of them is about.
    fn lines(&self) -> Vec<String> {
        let named = |name| self.verdicts.iter().any(|verdict| verdict.who == name || verdict.against == Some(name));
        let rest = self.contenders.iter().filter(|costs| !named(costs.name));
        let rest: Vec<_> = rest.map(|costs| format!("{} {}", costs.name, short(costs.median()))).collect();
        let line = |(nth, verdict): (usize, &Verdict)| {
            let ours = self.find(verdict.who);
            let who = verdict.who.strip_prefix("microio").unwrap_or(verdict.who).trim_start_matches([',', ' ']);
            let case = if who.is_empty() { self.case.to_string() } else { format!("{} ({who})", self.case) };
            let against = verdict.against.map(|name| format!("{name} {}", self.find(name).spread()));
            let most = if verdict.is_ratio { format!("<= {}", verdict.at_most) } else { verdict.bar(self.unit) };
            format!(
                "| {case:<32} | {:<6} | {:<17} | {:>5} | {:<44} | {:>7} | {most:<14} | {:<6} | {} |",
                self.place,
                ours.spread(),
                short(ours.allocations),
                against.unwrap_or_else(|| "-".into()),
                short(verdict.value),
                verdict.met.map_or("-", |met| if met { "met" } else { "MISSED" }),
                if nth == 0 { rest.join(", ") } else { String::new() },
            )
        };
        self.verdicts.iter().enumerate().map(line).collect()
    }
}

fn find<'a>(contenders: &'a [Costs], name: &str) -> &'a Costs {
    contenders.iter().find(|costs| costs.name == name).expect("a target names a contender of its case")
}

impl Verdict {
    fn new(target: &Target, place: Place, contenders: &[Costs]) -> Self {
        let best = |eligible: &dyn Fn(&Costs) -> bool| {
            let eligible = contenders.iter().filter(|costs| eligible(costs));
            eligible.min_by(|a, b| a.median().total_cmp(&b.median())).expect("a peer")
        };
        let ours = find(contenders, target.who);
        let (against, value, is_ratio) = match &target.bar {
            Bar::Best => {
                let best = best(&|costs| costs.role == Role::Peer);
                (Some(best.name), ratio(ours, best), true)
            }
            Bar::BestOf(names) => {
                let best = best(&|costs| names.contains(&costs.name));
                (Some(best.name), ratio(ours, best), true)
            }
            Bar::More(name) => (Some(*name), ours.median() - find(contenders, name).median(), false),
            Bar::Absolute => (None, ours.median(), false),
            Bar::Allocations => (None, ours.allocations, false),
        };
        // What is allocated once in a repetition is not allocated per operation.
        let slack = if matches!(target.bar, Bar::Allocations) { 0.01 } else { 0.0 };
        let met = target.is_judged(place).then_some(value <= target.most + slack);
        Verdict { who: target.who, against, value, is_ratio, at_most: target.most, met }
    }

    pub(crate) fn is_plotted(&self) -> bool {
        self.is_ratio
    }

    pub(crate) fn against(&self) -> &'static str {
        self.against.unwrap_or_default()
    }

    fn bar(&self, unit: &str) -> String {
        match self.against {
            Some(_) => format!("<= {} {unit} more", self.at_most),
            None if unit == "/s" => format!("<= {} {unit}", self.at_most),
            None => format!("<= {} allocs", self.at_most),
        }
    }
}

pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100_000.0 => format!("{:.0}k", value / 1000.0),
        v if v >= 100.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

pub(crate) fn head() -> String {
    let titles = format!(
        "| {:<32} | {:<6} | {:<17} | {:>5} | {:<44} | {:>7} | {:<14} | {:<6} | {} |",
        "case", "place", "microio", "alloc", "against", "ratio", "target", "", "others (median)"
    );
    let rule: String = titles.chars().map(|c| if c == '|' { '|' } else { '-' }).collect();
    format!("{titles}\n{rule}")
}

/// The lines of a row; or, when the last point of a growth has come, its table.
pub(crate) fn print(case: &Case, rows: &[Row]) {
    if case.along.is_empty() {
        rows.iter().flat_map(Row::lines).for_each(|line| println!("{line}"));
    } else {
        print!("{}", growth(case, rows));
    }
}

fn growth(case: &Case, rows: &[Row]) -> String {
    let place = rows.first().map_or(String::new(), |row| format!(", {}", row.place));
    let mut table = format!("\n{}: {}, {}{place}\n| {:>10} |", case.name, case.what, case.unit, case.along);
    let names = case.contenders.iter().map(|contender| contender.name);
    names.for_each(|name| _ = write!(table, " {name:>22} |"));
    table.push('\n');
    for row in rows {
        let _ = write!(table, "| {:>10} |", row.x);
        row.contenders.iter().for_each(|costs| _ = write!(table, " {:>22} |", short(costs.median())));
        table.push('\n');
    }
    table
}

/// How many targets were met.
pub(crate) fn summary(rows: &[Row]) -> String {
    let judged: Vec<bool> = rows.iter().flat_map(|row| &row.verdicts).filter_map(|verdict| verdict.met).collect();
    format!("{} of {} targets met", judged.iter().filter(|met| **met).count(), judged.len())
}
