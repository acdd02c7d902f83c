// What @grafana/ui does not export is drawn plainly, and says so.
import { formattedValueToString, getValueFormat } from '@grafana/data';
import React from 'react';

const LABEL = 70;
const NOTE = 'drawn plainly: not a panel of @grafana/ui';

const values = (frame) => frame.fields.find((field) => field.type === 'number');
const times = (frame) => frame.fields.find((field) => field.type === 'time');

function Frame({ width, height, theme, children }) {
  return (
    <svg width={width} height={height} style={{ fontSize: 11, fill: theme.colors.text.secondary }}>
      {children}
      <text x={width - 4} y={height - 3} textAnchor="end" opacity={0.7}>
        {NOTE}
      </text>
    </svg>
  );
}

// Prometheus' buckets hold all that is smaller too: a row is the difference to the one below.
export function Heat({ frames, unit, width, height, theme }) {
  const edge = (frame) => Number(values(frame).labels.le.replace('+Inf', 'Infinity'));
  const sorted = [...frames].sort((a, b) => edge(a) - edge(b));
  const columns = Math.min(40, times(sorted[0]).values.length);
  const each = times(sorted[0]).values.length / columns;
  const cells = sorted.map((frame, row) =>
    Array.from({ length: columns }, (_, column) => {
      const at = Math.floor((column + 1) * each) - 1;
      const below = row ? (values(sorted[row - 1]).values[at] ?? 0) : 0;
      return Math.max(0, (values(frame).values[at] ?? 0) - below);
    }),
  );
  const most = Math.max(...cells.flat(), 1e-9);
  const [tall, wide] = [(height - 18) / sorted.length, (width - LABEL) / columns];
  const format = getValueFormat(unit);
  return (
    <Frame width={width} height={height} theme={theme}>
      {cells.map((row, index) => {
        const y = height - 18 - (index + 1) * tall;
        const upTo = edge(sorted[index]);
        const name = upTo === Infinity ? '+Inf' : formattedValueToString(format(upTo));
        return (
          <g key={name}>
            <text x={LABEL - 8} y={y + tall / 2 + 4} textAnchor="end">{name}</text>
            {row.map((count, column) => (
              <rect key={column} x={LABEL + column * wide} y={y} width={wide - 1} height={tall - 1}
                fill={count ? '#5794F2' : theme.colors.background.secondary}
                opacity={count ? 0.25 + 0.75 * (count / most) : 0.5} />
            ))}
          </g>
        );
      })}
    </Frame>
  );
}

export function States({ frames, mappings, width, height, theme }) {
  const shown = mappings?.[0]?.options ?? {};
  const label = 150;
  const tall = Math.min(34, (height - 18) / Math.max(1, frames.length));
  return (
    <Frame width={width} height={height} theme={theme}>
      {frames.map((frame, row) => {
        const found = values(frame);
        const wide = (width - label) / found.values.length;
        return (
          <g key={row}>
            <text x={label - 8} y={row * tall + tall / 2 + 4} textAnchor="end">
              {found.config.displayNameFromDS}
            </text>
            {found.values.map((value, at) => (
              <rect key={at} x={label + at * wide} y={row * tall + 3} width={wide + 0.5}
                height={tall - 6} fill={shown[String(value)]?.color ?? '#777'} opacity={0.8} />
            ))}
          </g>
        );
      })}
    </Frame>
  );
}
