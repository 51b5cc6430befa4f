//! Line charts as SVG: a few kilobytes of text, without a library.

use std::fmt::Write;

/// Of the whole picture, in pixels, and of the frame within it.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 48.0;

/// One for each line; told apart also by those who see few colours (Okabe and Ito, 2008).
const COLOURS: [&str; 6] = ["#999999", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00"];

/// Most points drawn of a line: one every second pixel.
const MAX_POINTS: usize = 300;

/// A line's name and its points, in order of x.
pub struct Line {
    /// As the legend says it.
    pub name: String,
    /// (x, y).
    pub points: Vec<(f64, f64)>,
}

/// A chart.
pub struct Chart {
    /// Above it.
    pub title: String,
    /// Below the horizontal axis.
    pub x: &'static str,
    /// At the vertical one.
    pub y: &'static str,
    /// Where the vertical axis begins.
    pub from: f64,
    /// Points are marked and x is spread by its logarithm.
    pub few: bool,
    /// What is drawn.
    pub lines: Vec<Line>,
}

impl Chart {
    /// The SVG document.
    pub fn svg(&self) -> String {
        let scale = Scale::of(self);
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
        );
        label(&mut text, (LEFT, 22.0), "start", 15, &self.title);
        self.axes(&mut text, &scale);
        for (index, (line, colour)) in self.lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let step = line.points.len().div_ceil(MAX_POINTS).max(1);
            let points = line.points.iter().step_by(step).map(|point| scale.place(*point));
            let path: String = points.clone().map(|(x, y)| format!("{x:.1},{y:.1} ")).collect();
            let _ = writeln!(
                text,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.trim_end()
            );
            for (x, y) in points.filter(|_| self.few) {
                let _ = writeln!(text, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>");
            }
            let y = TOP + 12.0 + 20.0 * index as f64;
            let x = WIDTH - RIGHT + 14.0;
            let _ = writeln!(
                text,
                "<rect x=\"{x}\" y=\"{}\" width=\"18\" height=\"4\" fill=\"{colour}\"/>",
                y - 6.0
            );
            label(&mut text, (x + 24.0, y), "start", 12, &line.name);
        }
        text + "</svg>\n"
    }

    fn axes(&self, text: &mut String, scale: &Scale) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for y in ticks(scale.y.0, scale.y.1) {
            let (_, at) = scale.place((scale.x.0, y));
            let _ = writeln!(text, "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#dddddd\"/>");
            label(text, (LEFT - 8.0, at + 4.0), "end", 12, &number(y));
        }
        let marks = match self.lines.first() {
            Some(line) if self.few => line.points.iter().map(|point| point.0).collect(),
            _ => ticks(scale.x.0, scale.x.1),
        };
        for x in marks {
            let (at, _) = scale.place((x, scale.y.0));
            let _ = writeln!(text, "<path d=\"M{at:.1} {bottom}v5\" stroke=\"#666666\"/>");
            label(text, (at, bottom + 19.0), "middle", 12, &number(x));
        }
        let _ =
            writeln!(text, "<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"#666666\"/>");
        label(text, ((LEFT + right) / 2.0, HEIGHT - 10.0), "middle", 12, self.x);
        let middle = (TOP + bottom) / 2.0;
        let _ = writeln!(
            text,
            "<text x=\"16\" y=\"{middle}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {middle})\">{}</text>",
            escaped(self.y)
        );
    }
}

/// From values to pixels.
struct Scale {
    x: (f64, f64),
    y: (f64, f64),
    logarithmic: bool,
}

impl Scale {
    fn of(chart: &Chart) -> Self {
        let points = || chart.lines.iter().flat_map(|line| &line.points);
        let least = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
        let most = points().map(|point| point.0).fold(f64::NEG_INFINITY, f64::max);
        let highest = points().map(|point| point.1).fold(chart.from, f64::max);
        // Nothing, or one point: any width will do.
        let x = if least < most { (least, most) } else { (least.min(1.0), least.min(1.0) + 1.0) };
        let y = (chart.from, if highest > chart.from { highest } else { chart.from + 1.0 });
        Self { x, y, logarithmic: chart.few && x.0 > 0.0 }
    }

    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let along = |value: f64, (from, to): (f64, f64)| (value - from) / (to - from);
        let across =
            if self.logarithmic { along(x.ln(), (self.x.0.ln(), self.x.1.ln())) } else { along(x, self.x) };
        let up = along(y, self.y).clamp(0.0, 1.0);
        (LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))
    }
}

/// Four to ten round values within the range.
fn ticks(from: f64, to: f64) -> Vec<f64> {
    let rough = (to - from) / 5.0;
    let power = 10.0_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    let first = (from / step).ceil() as i64;
    let last = (to / step).floor() as i64;
    (first..=last).map(|count| count as f64 * step).collect()
}

fn number(value: f64) -> String {
    // As short as it can be said, without what floating point adds.
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn label(text: &mut String, (x, y): (f64, f64), anchor: &str, size: u32, what: &str) {
    let _ = writeln!(
        text,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{}</text>",
        escaped(what)
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let lines = vec![Line { name: "a < b & c".to_owned(), points }];
        Chart { title: "t".to_owned(), x: "seconds", y: "max / mean", from: 1.0, few: false, lines }
    }

    /// Every x,y of the polylines.
    fn drawn(svg: &str) -> Vec<(f64, f64)> {
        let lines =
            svg.lines().filter_map(|line| line.strip_prefix("<polyline points=\"")?.split('"').next());
        let pair = |pair: &str| {
            let (x, y) = pair.split_once(',')?;
            Some((x.parse().ok()?, y.parse().ok()?))
        };
        lines.flat_map(|line| line.split(' ').filter_map(pair)).collect()
    }

    #[test]
    fn points_are_within_the_frame_and_in_place() {
        let svg = chart(vec![(0.0, 1.0), (50.0, 1.5), (100.0, 2.0)]).svg();
        assert_eq!(drawn(&svg), [(64.0, 332.0), (317.0, 186.0), (570.0, 40.0)]);
        assert!(svg.contains("a &lt; b &amp; c") && !svg.contains("a < b"), "{svg}");
        assert!(svg.contains(">1.2</text>") && svg.contains(">60</text>"), "round values at the axes");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn few_points_are_marked_on_a_logarithmic_axis() {
        let svg = Chart { few: true, ..chart(vec![(0.5, 1.1), (5.0, 1.2), (50.0, 9.0)]) }.svg();
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!((drawn(&svg)[1].0 - 317.0).abs() < 0.2, "ten times is half of a hundred times");
    }

    #[test]
    fn nothing_and_too_much_are_drawn_too() {
        assert!(chart(vec![]).svg().ends_with("</svg>\n"));
        assert!(!chart(vec![(3.0, 1.0)]).svg().contains("NaN"));
        let many = (0..10_000).map(|n| (f64::from(n), 1.0)).collect();
        assert!(drawn(&chart(many).svg()).len() <= MAX_POINTS);
    }
}
