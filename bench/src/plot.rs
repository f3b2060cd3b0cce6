//! The ratios as bars with their targets, and the growth of costs as curves: SVG.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::report::{Row, Verdict, short};

type Drawn = Result<(), Box<dyn Error>>;

const FONT: &str = "sans-serif";
const MET: RGBColor = RGBColor(46, 139, 87);
const MISSED: RGBColor = RGBColor(205, 72, 60);
const UNJUDGED: RGBColor = RGBColor(150, 150, 150);

/// A bar for each target that is a ratio, on a logarithmic axis; a black stroke marks the target.
pub(crate) fn ratios(rows: &[Row], file: &Path) -> Drawn {
    let bars: Vec<(&Row, &Verdict)> =
        rows.iter().flat_map(|row| row.verdicts.iter().map(move |verdict| (row, verdict))).collect();
    let bars: Vec<_> = bars.into_iter().filter(|(_, verdict)| verdict.is_plotted()).collect();
    if bars.is_empty() {
        return Ok(());
    }
    let (left, right, line) = (330, 260, 18);
    let width = 1100;
    let height = 60 + line * bars.len() as i32;
    let root = SVGBackend::new(file, (width as u32, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size| (FONT, size).into_font();
    root.draw(&Text::new("microio against its peers: less is faster, the stroke is the target", (left, 6), text(15)))?;
    // From 0.001 to 10.
    let at =
        |ratio: f64| left + ((ratio.clamp(0.001, 10.0).log10() + 3.0) / 4.0 * f64::from(width - left - right)) as i32;
    for ratio in [0.001, 0.01, 0.1, 1.0, 10.0] {
        let x = at(ratio);
        root.draw(&PathElement::new([(x, 40), (x, height - 8)], UNJUDGED))?;
        root.draw(&Text::new(format!("{ratio}"), (x - 8, 26), text(11)))?;
    }
    for (nth, (row, verdict)) in bars.into_iter().enumerate() {
        let y = 44 + line * nth as i32;
        let colour = match verdict.met {
            Some(true) => MET,
            Some(false) => MISSED,
            None => UNJUDGED,
        };
        let end = at(verdict.value);
        root.draw(&Rectangle::new([(left, y), (end, y + line - 5)], colour.filled()))?;
        let target = at(verdict.at_most);
        root.draw(&PathElement::new([(target, y - 2), (target, y + line - 3)], BLACK.stroke_width(2)))?;
        root.draw(&Text::new(format!("{}: {}", row.label(), verdict.who), (6, y), text(11)))?;
        let ratio = format!("{} of {}", short(verdict.value), verdict.against());
        root.draw(&Text::new(ratio, (end.max(target) + 6, y), text(11)))?;
    }
    Ok(root.present()?)
}

/// A panel for each growth, both axes logarithmic.
pub(crate) fn growth(rows: &[Row], file: &Path) -> Drawn {
    let mut panels: Vec<&[Row]> = rows.chunk_by(|a, b| a.case == b.case).collect();
    panels.retain(|rows| rows.len() > 1 && rows[0].x > 0);
    if panels.is_empty() {
        return Ok(());
    }
    let columns = 2;
    let lines = panels.len().div_ceil(columns);
    let root = SVGBackend::new(file, (1000, 300 * lines as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, rows) in root.split_evenly((lines, columns)).iter().zip(panels) {
        let costs = || rows.iter().flat_map(|row| &row.contenders).map(|costs| costs.median().max(0.1));
        let (least, most) = costs().fold((f64::MAX, f64::MIN), |(least, most), c| (least.min(c), most.max(c)));
        let decade = |cost: f64| cost.log10().floor();
        let (costs_from, costs_to) = (10f64.powf(decade(least)), 10f64.powf(decade(most) + 1.0));
        let (from, to) = (rows[0].x as f64, rows[rows.len() - 1].x as f64);
        let mut chart = ChartBuilder::on(area)
            .caption(rows[0].title(), (FONT, 14))
            .margin(8)
            .margin_right(24)
            .x_label_area_size(28)
            .y_label_area_size(56)
            .build_cartesian_2d((from..to).log_scale(), (costs_from..costs_to).log_scale())?;
        let label = |value: &f64| short(*value);
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&label)
            .y_label_formatter(&label)
            .draw()?;
        for nth in 0..rows[0].contenders.len() {
            let colour = Palette99::pick(nth).stroke_width(if nth == 0 { 3 } else { 1 });
            let curve = rows.iter().map(|row| (row.x as f64, row.contenders[nth].median().max(0.1)));
            chart
                .draw_series(LineSeries::new(curve, colour))?
                .label(rows[0].contenders[nth].name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour));
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.7)).label_font((FONT, 10)).draw()?;
    }
    Ok(root.present()?)
}
