// One panel, drawn by the component that Grafana draws it with.
import { dateTime, getDisplayProcessor, getFieldDisplayValues } from '@grafana/data';
import { BarGauge, BigValue, PanelChrome, Table, TimeSeries } from '@grafana/ui';
import React from 'react';
import { fieldConfig } from './frames.js';
import { Heat, States } from './plain.jsx';

const all = (text) => text;

function shown(panel, frames, theme) {
  return getFieldDisplayValues({
    fieldConfig: fieldConfig(panel),
    reduceOptions: panel.options.reduceOptions,
    replaceVariables: all,
    theme,
    data: frames,
    sparkline: panel.options.graphMode === 'area',
    timeZone: 'utc',
  });
}

function Stat({ panel, frames, width, height, theme }) {
  const [first] = shown(panel, frames, theme);
  const { colorMode, graphMode, textMode, justifyMode } = panel.options;
  return (
    <BigValue value={first.display} sparkline={first.sparkline} theme={theme} width={width}
      height={height} colorMode={colorMode} graphMode={graphMode} textMode={textMode}
      justifyMode={justifyMode} />
  );
}

function Bars({ panel, frames, width, height, theme }) {
  const found = shown(panel, frames, theme);
  const tall = Math.min(40, Math.floor(height / Math.max(1, found.length)) - 4);
  return found.map((one, index) => (
    <div key={index} style={{ marginBottom: 4 }}>
      <BarGauge value={one.display} field={one.field} theme={theme} width={width} height={tall}
        orientation={panel.options.orientation} displayMode={panel.options.displayMode}
        valueDisplayMode={panel.options.valueMode} namePlacement={panel.options.namePlacement}
        showUnfilled={panel.options.showUnfilled}
        display={getDisplayProcessor({ field: { type: 'number', config: one.field }, theme })} />
    </div>
  ));
}

function Graph({ panel, frames, width, height, range }) {
  const [from, to] = range.map((seconds) => dateTime(seconds * 1000));
  return (
    <TimeSeries frames={frames} structureRev={1} width={width} height={height} timeZone="utc"
      timeRange={{ from, to, raw: { from, to } }} options={panel.options} replaceVariables={all}
      legend={{ ...panel.options.legend, calcs: [] }} />
  );
}

function Rows({ frames, width, height }) {
  return <Table data={frames[0]} width={width} height={height} columnMinWidth={80} />;
}

const DRAWN = {
  timeseries: Graph,
  stat: Stat,
  bargauge: Bars,
  table: Rows,
  heatmap: (given) => <Heat {...given} unit={given.panel.fieldConfig.defaults.unit} />,
  'state-timeline': (given) => <States {...given} mappings={given.panel.fieldConfig.defaults.mappings} />,
};

export function Panel({ panel, frames, width, height, theme, range }) {
  const Drawn = DRAWN[panel.type];
  return (
    <PanelChrome title={panel.title} description={panel.description} width={width} height={height}>
      {(w, h) =>
        frames.some((frame) => frame.length) ? (
          <Drawn panel={panel} frames={frames} width={w} height={h} theme={theme} range={range} />
        ) : (
          <div className="empty">{panel.fieldConfig.defaults.noValue}</div>
        )
      }
    </PanelChrome>
  );
}
