"""The default agent if none is configured: a small order desk on the demo model.

It needs no API key, so `serve` answers right after the install.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any, Literal

from langchain.agents import create_agent
from langchain_core.tools import BaseTool, tool
from langgraph.graph.state import CompiledStateGraph
from pydantic import Field

from app.agents.demo.model import DemoChatModel

NAME = "demo"
CARRIER_DELAY_S = 0.02

State = Literal["pending", "packed", "shipped", "delivered", "returned", "cancelled"]
Topic = Literal["refunds", "delivery", "warranty", "payment"]
OrderId = Annotated[
    str,
    Field(pattern=r"^\d{5,}$", description="订单号: five digits or more, for example 10023"),
]

_STATES_ZH: Mapping[State, str] = {
    "pending": "待付款",
    "packed": "已打包",
    "shipped": "已发货",
    "delivered": "已送达",
    "returned": "已退货",
    "cancelled": "已取消",
}
_DATES: Mapping[State, tuple[str, str]] = {
    "pending": ("expected {} if paid today", "今天付款预计 {} 送达"),
    "packed": ("expected {}", "预计 {} 送达"),
    "shipped": ("expected {}", "预计 {} 送达"),
    "delivered": ("it arrived on {}", "送达日期 {}"),
    "returned": ("it came back on {}", "退回日期 {}"),
    "cancelled": ("that was on {}", "取消日期 {}"),
}


@dataclass(frozen=True)
class Item:
    """One line of an order."""

    quantity: int
    name: str


@dataclass(frozen=True)
class Order:
    """An order. `_DATES` defines what its date means in each state."""

    order_id: str
    customer: str
    state: State
    items: tuple[Item, ...]
    date: str
    carrier: str | None
    parcel: str | None
    last_seen: str | None


@dataclass(frozen=True)
class OrderDesk:
    """The orders and policies of a small shop.

    Each answer has its facts as fields and a `summary` in two languages: the demo model repeats
    results and cannot phrase them. An unknown order is an answer, not an error.
    """

    orders: Mapping[str, Order]
    policies: Mapping[str, Mapping[str, str]]

    def order(self, order_id: str) -> dict[str, Any]:
        """Return an order's items, state and date."""
        order = self.orders.get(order_id)
        if order is None:
            return _no_such_order(order_id)
        items = [f"{item.quantity} × {item.name}" for item in order.items]
        date, date_zh = (phrase.format(order.date) for phrase in _DATES[order.state])
        return {
            "order_id": order_id,
            "found": True,
            "state": order.state,
            "items": items,
            "date": order.date,
            "summary": f"Order {order_id} is {order.state}: {', '.join(items)}; {date}.",
            "summary_zh": f"订单 {order_id} {_STATES_ZH[order.state]}："
            f"{'、'.join(items)}；{date_zh}。",
        }

    def orders_in(self, state: State) -> dict[str, Any]:
        """Return the orders in a state, with their customers."""
        orders = [order for order in self.orders.values() if order.state == state]
        names = [f"{order.order_id} ({order.customer})" for order in orders]
        names_zh = "、".join(names) or "无"
        count = f"{len(orders)} order is" if len(orders) == 1 else f"{len(orders)} orders are"
        return {
            "state": state,
            "order_ids": [order.order_id for order in orders],
            "summary": f"{count} {state}: {', '.join(names) or 'none'}.",
            "summary_zh": f"{_STATES_ZH[state]}的订单有 {len(orders)} 个：{names_zh}。",
        }

    def parcel(self, order_id: str) -> dict[str, Any]:
        """Return an order's carrier and last known location, if it was shipped."""
        order = self.orders.get(order_id)
        if order is None:
            return _no_such_order(order_id)
        if order.parcel is None:
            return {
                "order_id": order_id,
                "found": False,
                "summary": f"Order {order_id} is {order.state}: it has no parcel on its way.",
                "summary_zh": f"订单 {order_id} {_STATES_ZH[order.state]}，没有在途的包裹。",
            }
        return {
            "order_id": order_id,
            "found": True,
            "parcel": order.parcel,
            "carrier": order.carrier,
            "last_seen": order.last_seen,
            "summary": f"Order {order_id} travels as parcel {order.parcel} with {order.carrier}; "
            f"it was last seen in {order.last_seen} and is {order.state}.",
            "summary_zh": f"订单 {order_id} 的包裹 {order.parcel} 由 {order.carrier} 承运，"
            f"最近位置 {order.last_seen}，{_STATES_ZH[order.state]}。",
        }

    def policy(self, topic: Topic) -> dict[str, Any]:
        """Return the shop's policy on a topic."""
        text = self.policies[topic]
        return {"topic": topic, "summary": text["en"], "summary_zh": text["zh"]}


def _no_such_order(order_id: str) -> dict[str, Any]:
    return {
        "order_id": order_id,
        "found": False,
        "summary": f"There is no such order: {order_id}.",
        "summary_zh": f"没有这个订单：{order_id}。",
    }


def _open_desk() -> OrderDesk:
    text = resources.files("app.agents.demo").joinpath("orders.json").read_text("utf-8")
    data = json.loads(text)
    orders = [
        Order(**{**order, "items": tuple(Item(**item) for item in order["items"])})
        for order in data["orders"]
    ]
    return OrderDesk({order.order_id: order for order in orders}, data["policies"])


def _tools(desk: OrderDesk) -> Sequence[BaseTool]:
    """Return the desk as tools. The demo model matches Chinese by their Chinese keywords."""

    @tool
    def query_order(order_id: OrderId) -> dict[str, Any]:
        """Look up one order: its status, its items, and whether it is pending, packed, shipped,
        delivered, returned or cancelled. 查询 订单状态 到哪 哪里 什么时候到 发货 送达 退货 取消"""
        return desk.order(order_id)

    @tool
    def list_orders(
        state: Annotated[
            State,
            Field(
                description="状态. pending: 待付款, 没付款; packed: 已打包; shipped: 已发货; "
                "delivered: 已送达; returned: 已退货; cancelled: 已取消"
            ),
        ],
    ) -> dict[str, Any]:
        """List which orders, or all orders, are in one state. 列出 哪些订单 所有订单 全部订单"""
        return desk.orders_in(state)

    @tool
    async def track_parcel(order_id: OrderId) -> dict[str, Any]:
        """Track the parcel or package of an order with its carrier: the tracking number and where
        it was last seen. 物流 快递 包裹 跟踪 追踪 到哪 哪里"""
        # Simulates a carrier's network latency, so that the tool is visible in a trace.
        await asyncio.sleep(CARRIER_DELAY_S)
        return desk.parcel(order_id)

    @tool
    def store_policy(
        topic: Annotated[
            Topic,
            Field(
                description="主题. refunds: 退款, 退货, return, money back; "
                "delivery: 配送, 运费, free shipping; warranty: 保修, 质保, broken; "
                "payment: 付款, 支付, pay, card"
            ),
        ],
    ) -> dict[str, Any]:
        """Say what the store's policy or rule is. 政策 规定 规则"""
        return desk.policy(topic)

    return [query_order, track_parcel, store_policy, list_orders]


def build() -> CompiledStateGraph[Any, Any, Any, Any]:
    """Build the demo agent. The orders are read here, not at import."""
    return create_agent(DemoChatModel(), _tools(_open_desk()), name=NAME)
