// Draws one dashboard, given in the address (?watchkeeper-overview), from data/*.json.
import { createTheme, standardEditorsRegistry, standardFieldConfigEditorRegistry, ThemeContext } from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { GlobalStyles } from '@grafana/ui';
import React from 'react';
import { createRoot } from 'react-dom/client';
import { frames } from './frames.js';
import { Panel } from './panels.jsx';

const [COLUMN, ROW, GAP, MARGIN, HEAD] = [66, 38, 8, 16, 92];

const place = ({ x, y, w, h }) => ({
  position: 'absolute',
  left: MARGIN + x * COLUMN,
  top: HEAD + y * ROW,
  width: w * COLUMN - GAP,
  height: h * ROW - GAP,
});

class Caught extends React.Component {
  state = {};
  static getDerivedStateFromError(error) {
    return { error };
  }
  render() {
    return this.state.error ? <pre className="broken">{String(this.state.error)}</pre> : this.props.children;
  }
}

function Page({ board, data, drawn, theme }) {
  const names = board.templating.list.filter(({ hide }) => hide !== 2).map(({ label }) => label);
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <style>{`
        body { background: ${theme.colors.background.canvas}; color: ${theme.colors.text.primary}; }
        .empty { display: grid; place-items: center; height: 100%; color: ${theme.colors.text.secondary}; }
        .section { font-weight: 500; font-size: 16px; padding-top: 6px; }
        .broken { color: ${theme.colors.error.text}; }
        .head { position: absolute; left: 16px; top: 10px; }
        .choice { color: ${theme.colors.text.secondary}; margin-right: 18px; font-size: 12px; }
      `}</style>
      <div className="head">
        <div style={{ fontSize: 20 }}>{board.title}</div>
        <div style={{ margin: '2px 0 4px' }}>{board.description}</div>
        {names.map((name) => <span className="choice" key={name}>{name} ▾</span>)}
      </div>
      {board.panels.map((panel) => (
        <div key={panel.id} style={place(panel.gridPos)}>
          {panel.type === 'row' ? (
            <div className="section">⌄ {panel.title}</div>
          ) : (
            <Caught>
              <Panel panel={panel} frames={drawn[panel.id]} theme={theme} range={data.range}
                width={panel.gridPos.w * COLUMN - GAP} height={panel.gridPos.h * ROW - GAP} />
            </Caught>
          )}
        </div>
      ))}
    </ThemeContext.Provider>
  );
}

async function boot() {
  standardEditorsRegistry.setInit(() => []);
  standardFieldConfigEditorRegistry.setInit(() => []);
  await initPluginTranslations('preview').catch(() => {});
  const theme = createTheme({ colors: { mode: 'dark' } });
  const uid = location.search.slice(1);
  const [board, data] = await Promise.all(
    [`data/${uid}.json`, `data/${uid}.data.json`].map(async (path) => (await fetch(path)).json()),
  );
  const drawn = {};
  for (const panel of board.panels.filter(({ type }) => type !== 'row')) {
    drawn[panel.id] = await frames(panel, data.answers[panel.id] ?? {}, theme);
  }
  createRoot(document.getElementById('root')).render(<Page {...{ board, data, drawn, theme }} />);
}

boot().catch((error) => {
  document.body.innerText = `broken: ${error.stack}`;
});
