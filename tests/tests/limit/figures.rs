//! Figures of two subjects side by side: of each round a value of either, and their ratio. Pure.

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The limit: what a figure is divided by.
    Limit,
    /// Berth.
    Berth,
}

/// One measured value.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What it is, with its unit.
    pub name: String,
    /// In that unit.
    pub value: f64,
    /// Whether the load generator was busy all the time: then it may be the generator's figure, and not the server's.
    pub bound: bool,
}

/// What was measured of one name.
struct Row {
    name: String,
    /// Of each round, the limit's and Berth's.
    rounds: Vec<[Option<f64>; 2]>,
    /// Whether the generator bounded either, in any round.
    bound: [bool; 2],
}

/// All figures, in the order in which their names came.
#[derive(Default)]
pub struct Figures(Vec<Row>);

impl Figures {
    /// Adds what was measured in a round, counted from 0.
    pub fn add(&mut self, round: usize, who: Who, figure: Figure) {
        let Figure { name, value, bound } = figure;
        let place = self.0.iter().position(|row| row.name == name).unwrap_or_else(|| {
            self.0.push(Row { name, rounds: Vec::new(), bound: [false; 2] });
            self.0.len() - 1
        });
        let row = &mut self.0[place];
        if row.rounds.len() <= round {
            row.rounds.resize(round + 1, [None; 2]);
        }
        row.rounds[round][who as usize] = Some(value);
        row.bound[who as usize] |= bound;
    }

    /// The lines of a table.
    pub fn table(&self) -> Vec<String> {
        let head = format!("{:<46}{:>12}{:>12}{:>8}{:>16}", "", "limit", "berth", "ratio", "lowest-highest");
        std::iter::once(head).chain(self.0.iter().map(Row::line)).collect()
    }
}

impl Row {
    fn line(&self) -> String {
        let of = |who: Who| Spread::of(self.rounds.iter().filter_map(|round| round[who as usize]));
        // Of one round each: what a noisy neighbour did to both is in neither's favour.
        let ratios = self.rounds.iter().filter_map(|[limit, berth]| Some((*berth)? / (*limit)?));
        let text = |spread: Option<Spread>| spread.map_or("-".to_owned(), |s| format!("{:.2}", s.median));
        let ratio = Spread::of(ratios.filter(|ratio| ratio.is_finite()));
        let range = ratio.map_or("-".to_owned(), |s| format!("{:.2}-{:.2}", s.lowest, s.highest));
        let bound = match self.bound {
            [false, false] => "",
            [true, false] => "  limit: generator-bound",
            [false, true] => "  berth: generator-bound",
            [true, true] => "  both: generator-bound",
        };
        let (limit, berth) = (text(of(Who::Limit)), text(of(Who::Berth)));
        format!("{:<46}{limit:>12}{berth:>12}{:>8}{range:>16}{bound}", self.name, text(ratio))
    }
}

/// Values of several rounds.
#[derive(Clone, Copy)]
struct Spread {
    lowest: f64,
    median: f64,
    highest: f64,
}

impl Spread {
    /// Of an even number of values the median is between the middle two.
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (lowest, highest) = (*values.first()?, *values.last()?);
        let median = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
        Some(Self { lowest, median, highest })
    }
}

#[test]
fn a_ratio_is_of_one_round_and_not_of_medians() {
    let mut figures = Figures::default();
    let figure = |value, bound| Figure { name: "sends /s".to_owned(), value, bound };
    // The second round was slow for both.
    for (round, (limit, berth)) in [(100.0, 50.0), (10.0, 4.0), (80.0, 60.0)].into_iter().enumerate() {
        figures.add(round, Who::Berth, figure(berth, false));
        figures.add(round, Who::Limit, figure(limit, round == 2));
    }
    let only_berth = Figure { name: "more".to_owned(), value: 1.0, bound: false };
    figures.add(0, Who::Berth, only_berth);
    let words: Vec<Vec<String>> =
        figures.table().iter().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
    let expected = ["sends", "/s", "80.00", "50.00", "0.50", "0.40-0.75", "limit:", "generator-bound"];
    assert_eq!(words[1], expected);
    assert_eq!(words[2], ["more", "-", "1.00", "-", "-"]);
}
